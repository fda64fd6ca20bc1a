"""Figures and differences of a night's rows, with intervals over all trainings that differ in nothing but their seed.

Concepts are these concepts. Where each was trained but once, a training cannot be told from its concept: then both are in the
interval together, as if the concepts were trainings. Earlier nights of equal settings count as further trainings.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from customdiff_core import tables
from customdiff_core.artifacts import Store
from customdiff_core.benchmark import rows
from customdiff_core.benchmark.history import COSTS, METRICS, measured
from customdiff_core.evaluation.alignment import Scores
from customdiff_core.evaluation.intervals import grid_of, of_share, pooled_interval


@dataclass(frozen=True)
class Figure:
    """A mean, or a mean difference, with its interval."""

    value: float
    low: float
    high: float
    concepts: int
    trainings: int
    prompts: int
    seeds: int

    @property
    def says(self) -> bool:
        """Whether it knows how trainings differ: one training alone does not. A cost is counted and differs in none."""
        return self.concepts * self.trainings > 1 or not self.prompts


@dataclass(frozen=True)
class Common:
    """Rows' cells of the concepts that all of them have, as many trainings of each: none where they have nothing common."""

    parts: list[Any]
    concepts: int = 0
    trainings: int = 0

    @staticmethod
    def of(by_row: list[dict[str, Any]]) -> "Common":
        """Of rows' cells by concept."""
        concepts = [one for one in by_row[0] if all(one in row for row in by_row)] if by_row else []
        count = min((len(row[one]) for row in by_row for one in concepts), default=0)
        if not count:
            return Common([])
        return Common([pd.concat([row[one].tail(count) for one in concepts]) for row in by_row], len(concepts), count)


@dataclass
class Evidence:
    """The scores behind a night's table: of its cells, and of earlier nights' cells of equal settings.

    Args:
        cells: the history's rows, this night's included.
        night: as the history has it.
        store: where the cells' scores are; an earlier cell whose artifact is gone counts no more.
        confidence: of the intervals.
        beside: whose published figures are compared with.
    """

    cells: Any  # a frame: pandas' types lose track of one after two filters
    night: str
    store: Store
    confidence: float
    beside: rows.Source = "paper"
    _grids: dict[str, dict[str, Scores]] = field(default_factory=dict[str, dict[str, Scores]])
    _trainings: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    _common: dict[tuple[str, ...], Common] = field(default_factory=dict[tuple[str, ...], Common])

    def __post_init__(self) -> None:
        whole = (self.cells["share"] == 1) & (self.cells["status"] == "measured")
        judges = self.cells["judges"].isin(set(self.cells.loc[whole & (self.cells["night"] == self.night), "judges"]))
        self.cells = self.cells[whole & judges].sort_values(["night", "seed"], kind="stable")

    def figure(self, metric: str, row: str) -> Figure | None:
        """A row's mean; None where it was not measured."""
        return self._figure(metric, (row,), lambda: [self.trainings(row)])

    def difference(self, metric: str, row: str, against: str, tests: int = 1) -> Figure | None:
        """A row's mean less another's, paired by concept, prompt, seed and night; None where there is nothing common.

        The interval is one of `tests` that are all right with the confidence.
        """
        return self._figure(
            metric, (row, against), lambda: _paired(self.trainings(row), self.trainings(against)), tests
        )

    def change(self, metric: str, row: str, since: str) -> Figure | None:
        """A row's mean of this night less that of an earlier one; None where they did not measure the same thing, or only once.

        The code and its libraries may have changed between them. Where they did not, the two differ by chance alone.
        """

        def both() -> list[dict[str, Any]]:
            mine = self.cells[self.cells["row"] == row]
            own, before = (mine[mine["night"] == night] for night in (self.night, since))
            if measured(own) != measured(before) or set(own["cell"]) == set(before["cell"]):
                return []
            return [self._by_concept(own), self._by_concept(before)]

        return self._figure(metric, (row, "since", since), both)

    def trainings(self, row: str) -> dict[str, Any]:
        """By concept, the cells of this night and those of equal settings before it, oldest first, each measured once."""
        if row not in self._trainings:
            mine = self.cells[self.cells["row"] == row]
            tonight = mine[mine["night"] == self.night].groupby("concepts", sort=False)["settings"].last()
            equal = mine[mine["settings"] == mine["concepts"].map(tonight)]
            self._trainings[row] = self._by_concept(equal.drop_duplicates("cell", keep="last"))
        return self._trainings[row]

    def grids(self, cell: str) -> dict[str, Scores]:
        """A cell's scores by metric, (prompts, seeds); empty when they are no longer in the store."""
        if cell not in self._grids:
            path = self.store.root / "cell" / cell / "scores.parquet"
            parts = pd.read_parquet(path).groupby("metric") if path.is_file() else ()
            self._grids[cell] = {str(metric): grid_of(part) for metric, part in parts}
        return self._grids[cell]

    def _by_concept(self, cells: Any) -> dict[str, Any]:
        """The cells of one row whose scores are still in the store."""
        found = cells[cells["cell"].isin([key for key in cells["cell"] if self.grids(key)])]
        return {str(concept): part for concept, part in found.groupby("concepts", sort=False)}

    def _figure(
        self,
        metric: str,
        what: tuple[str, ...],
        by_row: Callable[[], list[dict[str, Any]]],
        tests: int = 1,
    ) -> Figure | None:
        """Of a row, or of a first less a second; `by_row` has their cells by concept, and is asked once for all metrics."""
        if what not in self._common:
            self._common[what] = Common.of(by_row())
        common = self._common[what]
        parts, signs = common.parts, (1.0, -1.0)[: len(common.parts)]
        if not parts:
            return None
        if any(metric not in part or part[metric].isna().all() for part in parts):
            return None
        value = sum(sign * float(part[metric].mean()) for sign, part in zip(signs, parts, strict=True))
        if metric in COSTS:  # of what was counted: a restarted training may not know all of its own
            return Figure(value, value, value, common.concepts, common.trainings, 0, 0)
        if any(part[metric].isna().any() for part in parts):
            return None
        grids = [np.stack([self.grids(key)[metric] for key in part["cell"]]) for part in parts]
        scores = sum(sign * grid for sign, grid in zip(signs, grids, strict=True))
        shaped = np.reshape(scores, (common.concepts, common.trainings, *grids[0].shape[1:]))
        trained = any(rows.get(name).way != "base" for part in parts for name in set(part["row"]))
        known = _as_trainings(shaped) if trained else shaped  # the base model is no training of any
        confidence = 1 - (1 - self.confidence) / tests
        low, high = pooled_interval(known, confidence)
        shift = value - float(shaped.mean())  # KID's is torch-fidelity's, over random subsets; the interval's is exact
        ends, size = (low + shift, high + shift), (shaped.size, shaped.shape[2])
        ends = of_share(metric, value, ends, size, confidence, difference=len(parts) > 1)
        return Figure(value, *ends, *shaped.shape)


def _paired(one: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of two rows that were measured in one night with one seed, by concept and in one order."""
    key = ["night", "seed"]
    common = [concept for concept in one if concept in other]
    return [
        {concept: mine[concept].merge(its[concept][key], on=key).sort_values(key) for concept in common}
        for mine, its in ((one, other), (other, one))
    ]


def _as_trainings(scores: Scores) -> Scores:
    """(C, 1, P, S) as (1, C, P, S): see above."""
    return scores.swapaxes(0, 1) if scores.shape[1] == 1 else scores


def table(evidence: Evidence, nights: Sequence[str]) -> list[tables.Row]:
    """Every row's figure of every metric and cost, with its change since the last night, and the published one."""
    found: list[tables.Row] = []
    for row in rows.ROWS.values():
        for metric in (*METRICS, *COSTS):
            figure = evidence.figure(metric, row.name)
            if figure is not None:
                change = evidence.change(metric, row.name, _last(nights))
                found.append(
                    {
                        "row": row.name,
                        "metric": metric,
                        **vars(figure),
                        "change": change.value if change else nan,
                        "change_low": change.low if change and change.says else nan,
                        "change_high": change.high if change and change.says else nan,
                        "paper": row.figure(evidence.beside, metric),
                    }
                )
    return found


def differences(evidence: Evidence) -> Iterator[tables.Row]:
    """Every pair of rows of one kind, on the same prompts and seeds."""
    names = list(rows.ROWS.values())
    for place, row in enumerate(names):
        for against in names[place + 1 :]:
            for metric in METRICS if row.together == against.together else ():
                figure = evidence.difference(metric, row.name, against.name)
                if figure is not None:
                    yield {"metric": metric, "row": row.name, "against": against.name, **vars(figure)}


def _last(nights: Sequence[str]) -> str:
    return nights[-2] if len(nights) > 1 else ""
