"""Report of several concepts in one model: one self-contained page with every prompt, every model and the merge's errors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from customdiff_core import figures, stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.evaluation.results import SEEDS_SHOWN, Cell, picture, sources, template, when
from customdiff_core.evaluation.together import PRESENCE
from customdiff_core.merging.account import remarks
from customdiff_core.profiles import Profile

TITLES = {"text_alignment": "Text alignment", PRESENCE: "Pictures with all of them"}


@dataclass(frozen=True)
class Drawn:
    """One prompt drawn by one model: its words, and the first seeds' pictures."""

    prompt: str
    pictures: list[str]


def report_together(
    concepts: tuple[Concept, ...], chain: dict[str, Artifact], profile: Profile, *, store: Store
) -> Artifact:
    """Write the page.

    Args:
        concepts: in the order of the prompts' places.
        chain: `together` (the figures) and the deltas by what the figures call them ("merged", "joint").
        profile: the base model.
        store: where the artifacts are, and the result goes.

    Returns:
        A `report` artifact: report.html.
    """

    def produce(folder: Path) -> int:
        (folder / "report.html").write_text(render(concepts, chain, profile, store), encoding="utf-8")
        return 1

    return store.make(stages.report_together(concepts, chain, profile), produce)


def render(concepts: tuple[Concept, ...], chain: dict[str, Artifact], profile: Profile, store: Store) -> str:
    """Return the page's HTML; prompts and names are escaped."""
    figures_of = chain["together"]
    page = template(stages.TOGETHER_TEMPLATE)
    recipe = store.manifest(figures_of).recipe
    table = tables.read(store, figures_of, "metrics")
    artifacts = chain | sources(figures_of, store)
    return page.render(
        concepts=concepts,
        shown=[[figures.thumbnail_uri(picture(one, image, "images"), 96) for image in one.images] for one in concepts],
        profile=profile,
        seeds=recipe.config["seeds"][:SEEDS_SHOWN],
        confidence=recipe.config["confidence"],
        subjects=list(sources(figures_of, store)),
        rows=prompt_rows(figures_of, store),
        metrics=metric_rows(table),
        judge=tables.records(table[table["subject"] == "judge"]),
        merges=merge_rows(chain, store),
        artifacts=[(name, store.manifest(one), when(store.manifest(one).created)) for name, one in artifacts.items()],
    )


def prompt_rows(together: Artifact, store: Store) -> list[dict[str, Drawn]]:
    """Every prompt: what each model drew of it, by the model's name."""
    rows: list[dict[str, Drawn]] = []
    for subject, samples in sources(together, store).items():
        table = tables.read(store, samples, "samples", ["prompt", "prompt_id", "seed", "image"])
        for number_of, (_, part) in enumerate(table.sort_values(["prompt_id", "seed"]).groupby("prompt_id")):
            if number_of == len(rows):
                rows.append({})
            pictures = [figures.thumbnail_uri(data, 96) for data in part["image"].head(SEEDS_SHOWN)]
            rows[number_of][subject] = Drawn(str(part["prompt"].iloc[0]), pictures)
    return rows


def metric_rows(table: pd.DataFrame) -> list[tuple[str, dict[str, Cell]]]:
    """Every metric's title with a cell for each model and difference."""
    measured = table[table["subject"] != "judge"]
    return [
        (
            TITLES.get(str(metric), str(metric).replace("image_alignment_", "Image alignment, ")),
            {str(row["subject"]): Cell(row["value"], row["ci_low"], row["ci_high"]) for row in tables.records(part)},
        )
        for metric, part in measured.groupby("metric", sort=False)
    ]


def merge_rows(chain: dict[str, Artifact], store: Store) -> list[dict[str, Any]]:
    """Of each merged model: errors by concept, the worst layer's, the words that were no constraints, and remarks."""
    found: list[dict[str, Any]] = []
    for name, artifact in chain.items():
        if artifact.kind != "delta" or store.manifest(artifact).recipe.labels.get("way") != "merge":
            continue
        report, rows = (tables.read(store, artifact, one) for one in ("merge", "rows"))
        worst = tables.records(report.groupby("concept").max(numeric_only=True).reset_index())
        left = rows[rows["state"] != "constraint"].groupby("state")["token"].unique()
        words = {str(state): ", ".join(some) for state, some in left.items()}
        found.append({"name": name, "concepts": worst, "left_out": words, "remarks": remarks(artifact, store)})
    return found
