"""Cells: the work of a night. One is a row of the table for a concept, or for several together, and a training seed."""

from collections.abc import Iterator
from datetime import date
from typing import Any

from pydantic import Field

from customdiff_core.benchmark import rows
from customdiff_core.benchmark.protocol import Protocol
from customdiff_core.benchmark.rows import Row
from customdiff_core.config import FinetuneConfig, Frozen
from customdiff_core.profiles import Profile
from customdiff_core.seeding import seed_of


class Cell(Frozen):
    """What one task measures."""

    row: str
    concepts: tuple[str, ...]
    prompts: str = Field(default="", description="file in data/prompts, of several concepts")
    seed: int = Field(description="training seed")
    share: float = Field(default=1.0, gt=0, le=1, description="of the steps: below 1 on the trade-off's curve")
    change: dict[str, Any] = Field(default_factory=dict, description="training settings that differ: a search's trial")

    @property
    def what(self) -> Row:
        """Its row."""
        return rows.get(self.row)

    @property
    def name(self) -> str:
        """How a run calls it: "merged cat+dog"."""
        part = "" if self.share == 1 else f" at {self.share:g} of the steps"
        tried = "".join(f", {name} {value}" for name, value in self.change.items())
        return f"{self.row} {'+'.join(self.concepts)}{part}{tried}, seed {self.seed}"

    def training(self, profile: Profile) -> FinetuneConfig:
        """The profile's settings for the row's method, with what is changed; the seed and the share are not in it."""
        config = profile.training(self.what.method)
        return FinetuneConfig.model_validate(config.model_dump() | self.change) if self.change else config


def training_seeds(night: date, count: int) -> tuple[int, ...]:
    """The training seeds of a night: of another night others, so that a night measures instead of finding the cache."""
    return tuple(int(f"{night:%Y%m%d}{number:02d}") for number in range(count))


def training_seed(seed: int, first: str) -> int:
    """The seed of a cell's training whose first concept is this one.

    Trainings of different concepts share no draw, so that an interval may take them as independent; in every row a concept
    has the same, so that a part of a merge is the training of that concept alone. Where groups share a concept, as three of the
    paper's five pairs do with another, their merges share that training: of five such pairs an interval of 95 % has 88 %.
    """
    return seed_of("training", seed, first) % 2**31


def plan(protocol: Protocol, night: date) -> tuple[Cell, ...]:
    """Every cell of a night, in an order in which a longer training goes on from the shorter one on its curve."""
    return tuple(cell for seed in training_seeds(night, protocol.trainings) for cell in _cells(protocol, seed))


def _cells(protocol: Protocol, seed: int) -> Iterator[Cell]:
    wanted = [row for name, row in rows.ROWS.items() if name in protocol.rows]
    for number, concept in enumerate(protocol.concepts):
        for row in (one for one in wanted if not one.together):
            shares = sorted(protocol.curve) if number == 0 and row.way != "base" else []
            for share in [*shares, 1.0]:
                yield Cell(row=row.name, concepts=(concept,), seed=seed, share=share)
    for group in protocol.together:
        for row in (one for one in wanted if one.together):
            yield Cell(row=row.name, concepts=group.concepts, prompts=group.prompts, seed=seed)
