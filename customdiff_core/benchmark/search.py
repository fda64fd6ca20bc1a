"""A search: training settings that are tried on one concept, as data in `data/searches/<name>.yaml`.

The settings with the highest image alignment are chosen, among those that cost no more of text alignment than `lost`; then
they are tested on concepts that had no part in the choice.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from customdiff_core.benchmark import protocol, rows
from customdiff_core.benchmark.cells import Cell
from customdiff_core.benchmark.protocol import NAME, Protocol, read
from customdiff_core.config import FinetuneConfig, Frozen, SampleConfig
from customdiff_core.errors import ConfigError
from customdiff_core.settings import Settings

FIXED = frozenset({"method", "seed", "preview_prompts", "preview_every"})  # no trial's to change


class Search(Frozen):
    """What is tried, how it is measured, and how much of the words it may cost."""

    name: str = Field(pattern=NAME)
    concept: str = Field(description="on which settings are chosen")
    tested: tuple[str, ...] = Field(default=(), description="on which the chosen ones are tested")
    row: str = Field(default="custom-diffusion", description="name of benchmark/rows.py, of one concept")
    trials: tuple[dict[str, Any], ...] = Field(
        min_length=1, description="settings that differ from the profile's; a list stands for each of its values"
    )
    trainings: int = Field(default=2, ge=1, description="training seeds of each: one alone is a lottery")
    lost: float = Field(
        default=0.5, ge=0, description="text alignment that settings may cost, against the base model's"
    )
    prompts: int = Field(default=20, ge=1, description="of each concept's prompts, the first")
    seeds: int = Field(default=4, ge=1, description="images a prompt")
    sample: SampleConfig | None = Field(default=None, description="how images are drawn; empty: the profile's")
    stated: str = Field(default="", description="names what a run changed; empty: nothing")
    kid_images: int = Field(default=60, ge=6, description="held-out captions of the category")
    kid_subset_size: int = Field(default=30, ge=2, description="torch-fidelity's subset size")

    @field_validator("trials")
    @classmethod
    def _possible(cls, trials: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        """Every combination, once, as settings that a training takes."""
        found: list[dict[str, Any]] = []
        for trial in trials:
            choices = [value if isinstance(value, list) else [value] for value in trial.values()]
            found += [dict(zip(trial, values, strict=True)) for values in product(*choices)]
        for one in found:
            if fixed := FIXED & set(one):
                raise ValueError(f"{', '.join(sorted(fixed))} cannot be tried")
            try:
                FinetuneConfig.model_validate({"steps": 1} | one)
            except ValidationError as error:
                raise ValueError(f"{one}: {error.errors()[0]['loc'][0]}, {error.errors()[0]['msg']}") from error
        return tuple(one for number, one in enumerate(found) if one not in found[:number])

    @property
    def protocol(self) -> Protocol:
        """How its cells are measured."""
        shared = {"prompts", "seeds", "sample", "kid_images", "kid_subset_size", "name", "trainings"}
        concepts = (self.concept, *self.tested)
        return Protocol(concepts=concepts, rows=("base", self.row), verdicts=False, **self.model_dump(include=shared))


def names(data: Path | None = None) -> list[str]:
    """The searches of data/searches."""
    return sorted(path.stem for path in _folder(data).glob("*.yaml"))


def load(name: str, data: Path | None = None) -> Search:
    """Read `data/searches/<name>.yaml`.

    Raises:
        ConfigError: for an unknown name, a file that is no search, or what does not fit together.
    """
    return checked(read(Search, _folder(data), name))


def checked(search: Search) -> Search:
    """Return a search whose row learns one concept, whose test had no part in the choice, and whose numbers fit together.

    Raises:
        ConfigError: naming what does not fit.
    """
    row = rows.get(search.row)
    if row.together or row.way == "base":
        raise ConfigError(
            f"search {search.name}: found the row {search.row}, need one that learns one concept; choose another row"
        )
    if len({search.concept, *search.tested}) != 1 + len(search.tested):
        raise ConfigError(
            f"search {search.name}: found {search.concept} and the test on {', '.join(search.tested)}, need each concept once: "
            "on the one that they are chosen on, settings are not tested; correct `tested`"
        )
    protocol.checked(search.protocol)
    return search


def trials(search: Search) -> tuple[Cell, ...]:
    """The cells of the choice: the base model, and every trial with every training seed."""
    return tuple(_cells(search, search.concept, search.trials))


def tests(search: Search, chosen: dict[str, Any]) -> tuple[Cell, ...]:
    """The cells of the test: the base model and the chosen settings on every other concept."""
    return tuple(cell for concept in search.tested for cell in _cells(search, concept, (chosen,)))


def _cells(search: Search, concept: str, tried: tuple[dict[str, Any], ...]) -> Iterator[Cell]:
    yield Cell(row="base", concepts=(concept,), seed=0)
    for change in tried:
        for seed in range(search.trainings):
            yield Cell(row=search.row, concepts=(concept,), seed=seed, change=change)


def _folder(data: Path | None) -> Path:
    return (data or Settings().data) / "searches"
