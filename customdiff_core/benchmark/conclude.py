"""What a search found: every trial's figures, the settings chosen, and how they do on concepts that had no part in it."""

import json
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from customdiff_core import stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark.history import METRICS
from customdiff_core.benchmark.outcomes import Outcome
from customdiff_core.benchmark.search import Search
from customdiff_core.errors import EvaluationError
from customdiff_core.evaluation.results import number
from customdiff_core.profiles import Profile

BASE = ""  # in place of the base model's settings
HELD_OUT, TRAINING = "image_alignment_held_out", "image_alignment_training"


def conclude(
    tried: tuple[Outcome, ...], tested: tuple[Outcome, ...], search: Search, profile: Profile, *, store: Store
) -> Artifact:
    """Write down a search.

    Args:
        tried: of every cell of `search.trials`.
        tested: of every cell of `search.tests`, with the chosen settings.
        search: what was tried.
        profile: the base model.
        store: where the cells are, and the result goes.

    Returns:
        A `search` artifact: search.parquet (a row a cell: concept, change, seed, error and its figures) and trials.parquet (a row
        a trial and concept: means over training seeds, the text alignment lost against the base model, whether it was chosen).

    Raises:
        EvaluationError: if the base model or every trial failed.
    """

    def produce(folder: Path) -> int:
        best = _text(choose(tried, search, store))
        tables.write(folder / "search.parquet", figures((*tried, *tested), store))
        found = summary((*tried, *tested), store)
        return tables.write(folder / "trials.parquet", found.assign(chosen=found["change"] == best))

    return store.make(stages.search(tried, tested, search, profile), produce)


def choose(tried: Sequence[Outcome], search: Search, store: Store) -> dict[str, Any]:
    """The settings with the highest image alignment among those that lose at most `lost`; where none does, that lose least.

    Settings of which a training failed are chosen only where all have one: the others' mean may be luck.

    Raises:
        EvaluationError: if the base model or every trial failed.
    """
    found: Any = summary(tried, store)
    trials = found[(found["change"] != BASE) & found["lost"].notna()]
    if trials.empty:
        said = next((one.error for one in tried if one.error), "no cells")
        raise EvaluationError(
            f"search {search.name}: found no trial to compare with the base model ({said}), need one; see the cells' task runs"
        )
    whole = trials[trials["trainings"] == search.trainings]
    trials = whole if len(whole) else trials
    cheap = trials[trials["lost"] <= search.lost]
    best = cheap["image"].idxmax() if len(cheap) else trials["lost"].idxmin()
    chosen: dict[str, Any] = json.loads(str(trials.loc[best, "change"]))
    return chosen


def figures(outcomes: Sequence[Outcome], store: Store) -> pd.DataFrame:
    """Every cell: what was changed, and what was measured."""
    return pd.DataFrame([_row(one, store) for one in outcomes])


def summary(outcomes: Sequence[Outcome], store: Store) -> pd.DataFrame:
    """Every trial on every concept: means over its training seeds, in the order in which they were tried."""
    cells = figures(outcomes, store)
    rows: list[tables.Row] = []
    for concept, mine in cells.groupby("concept", sort=False):
        # A concept of its own pictures alone has no held-out ones; that of others stays as it was chosen by.
        image = HELD_OUT if mine.loc[mine["error"] == "", HELD_OUT].notna().all() else TRAINING
        base = float(mine.loc[mine["change"] == BASE, "text_alignment"].mean())
        for change, part in mine.groupby("change", sort=False):
            text = float(part["text_alignment"].mean())
            rows.append(
                {
                    "concept": concept,
                    "change": change,
                    "metric": image,  # which image alignment
                    "image": float(part[image].mean()),
                    "image_low": float(part[image].min()),
                    "image_high": float(part[image].max()),
                    "text": text,
                    "lost": base - text,
                    "kid": float(part["kid"].mean()),
                    "trainings": int((part["error"] == "").sum()),
                    # Of one training; the means are of the others.
                    "error": next((one for one in part["error"] if one), ""),
                }
            )
    return pd.DataFrame([dict(one) for one in rows])


def markdown(made: Artifact, store: Store, escape: Callable[[str], str] = str) -> str:
    """What was asked, the trials as a table, the chosen one in bold, and below it the test.

    Args:
        made: from `conclude`.
        store: where it is.
        escape: makes harmless, for where this is shown, what others have written: names, settings and errors.
    """
    found: Any = tables.read(store, made, "trials")
    search = Search.model_validate(store.manifest(made).recipe.config["search"])
    first = search.concept
    mine = found[found["concept"] == first]
    asked = (
        f"Settings of `{search.row}`, chosen on {escape(first)}: the highest image alignment among those that cost at "
        f"most {search.lost:g} of text alignment against the base model, in means over {search.trainings} trainings."
    )
    if float(mine.loc[mine["chosen"], "lost"].iloc[0]) > search.lost:
        asked += " **None costs so little; the cheapest is chosen.**"
    parts = [asked, _table(mine, escape)]
    for concept, part in found[found["concept"] != first].groupby("concept", sort=False):
        parts.append(f"Tested on {escape(str(concept))}, which had no part in the choice:\n\n{_table(part, escape)}")
    return "\n\n".join(parts)


def said(change: str) -> str:
    """Settings as words."""
    if change == BASE:
        return "base model"
    return ", ".join(f"{name} {value}" for name, value in json.loads(change).items()) or "the profile's"


def _table(part: pd.DataFrame, escape: Callable[[str], str]) -> str:
    lines = [
        f"| | settings | {METRICS[str(part['metric'].iloc[0])].lower()} | over trainings | text alignment | lost | KID × 10³ |",
        "|---|---|---|---|---|---|---|",
    ]
    for place, row in enumerate(tables.records(part)):
        spread = f"{number(row['image_low'])} to {number(row['image_high'])}" if row["trainings"] > 1 else ""
        lost = number(row["lost"]) if row["change"] != BASE else ""
        values = [number(row["image"]), spread, number(row["text"]), lost, number(row["kid"])]
        if row["error"]:
            why = escape(" ".join(row["error"].split()).replace("|", "/"))
            values[1] = f"{spread} a training failed: {why}".strip()
        if not row["trainings"]:
            values = ["–", values[1], "–", "–", "–"]
        cells = [str(place) if place else "", escape(said(row["change"])), *values]  # numbered as in the chart
        lines.append(f"| {' | '.join(f'**{one}**' if row['chosen'] and one else one for one in cells)} |")
    return "\n".join(lines)


def _row(outcome: Outcome, store: Store) -> dict[str, Any]:
    cell, made = outcome.cell, outcome.made
    found: dict[str, Any] = {
        "concept": "+".join(cell.concepts),
        "change": BASE if cell.what.way == "base" else _text(cell.change),
        "seed": cell.seed,
        "error": outcome.error,
        "cell": made.key if made else "",
    }
    found |= dict.fromkeys(METRICS, nan)
    if made:
        found |= {row["metric"]: row["value"] for row in tables.records(tables.read(store, made, "measures"))}
    return found


def _text(change: dict[str, Any]) -> str:
    return json.dumps(change, sort_keys=True)
