"""A benchmark whose every cell is written by hand: known scores, so that what is concluded from them is known too."""

from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark import rows
from customdiff_core.benchmark.cells import Cell, plan
from customdiff_core.benchmark.history import COSTS, earlier
from customdiff_core.benchmark.outcomes import Outcome
from customdiff_core.benchmark.protocol import Protocol, Together
from customdiff_core.benchmark.tabulate import tabulate
from customdiff_core.profiles import Profile
from customdiff_core.recipes import Recipe

from ...handmade import EVIL, png

PROMPTS, SEEDS, GROUPS = 4, 3, 10
PROTOCOL = Protocol(
    name="handmade",
    concepts=("cat", "dog", "house"),
    together=(Together(concepts=("cat", "dog")), Together(concepts=("dog", "house"))),
    prompts=PROMPTS,
    prompts_together=PROMPTS,
    seeds=SEEDS,
    kid_images=20,
    kid_subset_size=10,
    curve=(0.5,),
)
NIGHT = date(2026, 3, 1)
Night = Callable[..., Artifact]


@pytest.fixture(scope="module", autouse=True)
def hasty() -> Iterator[None]:
    """Nothing here must survive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def night(store: Store, openmoji: Profile) -> Night:
    return partial(tabulated, store, openmoji)


def tabulated(
    store: Store,
    profile: Profile,
    when: date = NIGHT,
    levels: dict[tuple[str, str], float] | None = None,
    failing: tuple[str, ...] = (),
    protocol: Protocol = PROTOCOL,
    judge: str = "",
    terms: str = "",
    shift: float = 0,
) -> Artifact:
    """Tabulate a night: `levels` are the true means by (row, metric), `failing` the rows of which the first cell failed.

    `shift` is on every score of the night.
    """
    outcomes: list[Outcome] = []
    failed: set[str] = set()
    for cell in plan(protocol, when):
        if cell.row in failing and cell.row not in failed:
            failed.add(cell.row)
            outcomes.append(Outcome(cell=cell, error=f"TrainingError: {EVIL}"))
        else:
            outcomes.append(Outcome(cell=cell, made=_cell(store, cell, levels or {}, 0.01, judge, terms, shift)))
    before = earlier(protocol, when, profile, store)
    return tabulate(tuple(outcomes), protocol, when, before, profile, store=store)


def _cell(
    store: Store, cell: Cell, levels: dict[tuple[str, str], float], spread: float, judge: str, terms: str, shift: float
) -> Artifact:
    """Scores around a level: the same prompts and seeds of a concept move every row alike, its training moves it apart."""
    together = len(cell.concepts) > 1
    metrics = ["text_alignment", "image_alignment_training"] + (["image_alignment_1"] if together else [])
    seed = 0 if cell.what.way == "base" else cell.seed
    own = np.random.default_rng([seed, *map(ord, cell.row + cell.concepts[0])])
    shared = np.random.default_rng([*map(ord, "+".join(cell.concepts))])
    common = shared.normal(0, 0.3, (PROMPTS, SEEDS))
    scores: list[dict[str, Any]] = []
    for metric in metrics:
        level = levels.get((cell.row, metric), 0.5) + shift
        grid = level + common + own.normal(0, spread) + own.normal(0, spread, common.shape)
        scores += [
            {"metric": metric, "prompt_id": p, "seed": s, "value": grid[p, s]}
            for p in range(PROMPTS)
            for s in range(SEEDS)
        ]
    if not together and cell.share == 1:
        grid = levels.get((cell.row, "kid"), 1.0) + own.normal(0, spread, GROUPS)
        scores += [{"metric": "kid", "prompt_id": g, "seed": 0, "value": grid[g]} for g in range(GROUPS)]

    def produce(folder: Path) -> int:
        frame = pd.DataFrame(scores)
        tables.write(folder / "scores.parquet", frame)
        means = frame.groupby("metric", sort=False)["value"].mean()
        measures = [{"metric": name, "extractor": "x", "value": value, "n": 1} for name, value in means.items()]
        shares = {"custom-diffusion": 0.022, "dreambooth": 1.0}
        spent = dict.fromkeys(COSTS, 2.0) | {"trained_share": shares.get(cell.row, 0.5)}
        tables.write(folder / "costs.parquet", [spent if cell.what.way != "base" else dict.fromkeys(COSTS, 0.0)])
        handles = {"samples": _samples(store, cell)}
        if cell.what.way != "base":
            handles["delta"] = _training(store, cell)
        tables.write(folder / "sources.parquet", [{"name": name, **one.model_dump()} for name, one in handles.items()])
        return tables.write(folder / "measures.parquet", measures)

    config = {"row": cell.row, "concepts": list(cell.concepts), "share": cell.share, "spread": spread, "seed": seed}
    level = {f"{row} {metric}": value for (row, metric), value in levels.items()}
    recipe = Recipe(kind="cell", inputs={"judge": judge, "terms": terms}, config=config, code=str(level), versions={})
    # The levels are what a change of code would be: cells of other levels are of other settings.
    return store.make(recipe, produce)


def _training(store: Store, cell: Cell) -> Artifact:
    """What stands for a delta; each has another content."""
    recipe = Recipe(kind="delta", inputs={}, config={"cell": cell.name}, code="0", versions={})
    return store.make(recipe, lambda folder: tables.write(folder / "delta.parquet", [{"cell": cell.name}]))


def _samples(store: Store, cell: Cell) -> Artifact:
    drawn = [
        {"prompt": f"{EVIL} {p}", "prompt_id": p, "seed": s, "image": png(p)}
        for p in range(PROMPTS)
        for s in range(SEEDS)
    ]
    recipe = Recipe(kind="samples", inputs={"cell": "+".join(cell.concepts)}, config={}, code="0", versions={})
    return store.make(recipe, lambda folder: tables.write(folder / "samples.parquet", drawn))


def read(store: Store, benchmark: Artifact, name: str) -> pd.DataFrame:
    return tables.read(store, benchmark, name)


ROWS = tuple(rows.ROWS)
