"""What a run's artifacts say, read for people: the same figures and pictures for the report and the UI."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined, Template
from safetensors import safe_open

from customdiff_core import figures, images, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept, Picture
from customdiff_core.training_set import LATENTS, examples

SEEDS_SHOWN = 4
VIEWS_SHOWN = 24


@dataclass(frozen=True)
class PromptRow:
    """One prompt drawn by both models on equal noise: encoded images in the order of their seeds."""

    base_prompt: str
    prompt: str
    base: list[bytes]
    customized: list[bytes]


@dataclass(frozen=True)
class Cell:
    """A figure with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One metric of both models; the difference is customized - base, paired by prompt and seed where there is one."""

    metric: str
    title: str
    base: Cell
    customized: Cell
    difference: Cell | None
    n: int
    extractor: str

    @property
    def change(self) -> str:
        """What customization did: "up" or "down" where the interval says so, else "same"."""
        if self.difference is not None:
            low, high = self.difference.low, self.difference.high
        else:
            low, high = self.customized.low - self.base.high, self.customized.high - self.base.low
        return "up" if low > 0 else "down" if high < 0 else "same"


def sources(metrics: Artifact, store: Store) -> dict[str, Artifact]:
    """Return the sample sets that were measured, by name."""
    records = tables.read(store, metrics, "sources").to_dict("records")
    return {str(one.pop("name")): Artifact.model_validate(one) for one in records}


def side_by_side(metrics: Artifact, store: Store, seeds: int = SEEDS_SHOWN) -> list[PromptRow]:
    """Return every prompt's images of both models: the first seeds, never a choice."""
    sets = sources(metrics, store)
    base, customized = (_by_prompt(sets[name], store, seeds) for name in ("base", "customized"))
    return [
        PromptRow(base_prompt, prompt, plain, special)
        for (base_prompt, plain), (prompt, special) in zip(base, customized, strict=True)
    ]


def compare(metrics: pd.DataFrame) -> list[Comparison]:
    """Return the metrics table as comparisons, the most telling first."""
    cells = {(row["metric"], row["subject"]): row for row in metrics.to_dict("records")}
    return [
        Comparison(
            metric=metric,
            title=title,
            base=_cell(cells[metric, "base"]),
            customized=_cell(cells[metric, "customized"]),
            difference=_cell(cells[metric, "difference"]) if (metric, "difference") in cells else None,
            n=int(cells[metric, "customized"]["n"]),
            extractor=str(cells[metric, "customized"]["extractor"]),
        )
        for metric, title in figures.METRICS.items()
        if (metric, "customized") in cells
    ]


def views(training_set: Artifact, store: Store, count: int = VIEWS_SHOWN) -> list[dict[str, Any]]:
    """Return the first augmented views: rows of the examples table, with `mask`, (h, w) latent cells of 0 and 1."""
    rows = examples(store, training_set, "image")
    records = tables.records(rows.loc[rows["role"] == "concept"].head(count))
    with safe_open(store.path(training_set) / LATENTS, "np") as file:
        return [
            {**one, "mask": file.get_slice(f"mask.{one['width']}x{one['height']}")[int(one["latent_row"])][0]}
            for one in records
        ]


def template(path: Path) -> Template:
    """Open a page's Jinja template: everything put in is escaped, and a missing name is an error."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "interval": interval}
    return environment.from_string(path.read_text(encoding="utf-8"))


def number(value: float, *, digits: int = 3, signed: bool = False) -> str:
    """Format a figure with a true minus sign."""
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def interval(cell: Cell, *, digits: int = 3, signed: bool = False) -> str:
    """Format a figure's interval: "1.30 to 1.64"."""
    return f"{number(cell.low, digits=digits, signed=signed)} to {number(cell.high, digits=digits, signed=signed)}"


def when(moment: datetime) -> str:
    """Format a moment for people."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def picture(concept: Concept, one: Picture, folder: str) -> bytes:
    """Return one of the concept's pictures as a square PNG."""
    return images.encode(images.center_crop(images.decode(concept.read(one, folder), one.name)))


def _cell(row: dict[Any, Any]) -> Cell:
    return Cell(float(row["value"]), float(row["ci_low"]), float(row["ci_high"]))


def _by_prompt(samples: Artifact, store: Store, seeds: int) -> list[tuple[str, list[bytes]]]:
    table = tables.read(store, samples, "samples", ["prompt", "prompt_id", "seed", "image"])
    ordered = table.sort_values(["prompt_id", "seed"])
    return [(str(part["prompt"].iloc[0]), list(part["image"].head(seeds))) for _, part in ordered.groupby("prompt_id")]
