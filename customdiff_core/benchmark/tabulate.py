"""Tabulate: a night's cells, measured or failed, into its table, with every night before."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from customdiff_core import stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark.claims import judged
from customdiff_core.benchmark.drift import drift
from customdiff_core.benchmark.history import KIND, frame
from customdiff_core.benchmark.outcomes import Outcome
from customdiff_core.benchmark.protocol import Protocol
from customdiff_core.benchmark.summary import Evidence, differences, table
from customdiff_core.errors import EvaluationError
from customdiff_core.profiles import Profile


def tabulate(
    outcomes: tuple[Outcome, ...],
    protocol: Protocol,
    night: date,
    before: Sequence[Artifact],
    profile: Profile,
    *,
    store: Store,
) -> Artifact:
    """Write a night's table.

    Args:
        outcomes: of every cell of the night.
        protocol: how they were measured.
        night: UTC.
        before: the benchmarks of the nights before, from `earlier`.
        profile: the base model.
        store: where the cells are, and the result goes.

    Returns:
        A `benchmark` artifact: benchmark.parquet (a row a cell a night, the earlier nights' included), table.parquet (a row a
        figure), differences.parquet (paired, a row two rows and a metric), claims.parquet (a row a difference of a claim),
        drift.parquet (a row a night of a chart) and curve.parquet (the trade-off over training steps).

    Raises:
        EvaluationError: if not one cell was measured.
    """
    if not any(one.made for one in outcomes):
        first = outcomes[0].error if outcomes else "no cells"
        raise EvaluationError(
            f"benchmark: found no cell that was measured ({first}), need one; see the cells' task runs"
        )

    def produce(folder: Path) -> int:
        cells = frame(outcomes, protocol, night, before, store)
        evidence = Evidence(cells, night.isoformat(), store, protocol.confidence, protocol.beside)
        found = table(evidence, sorted(set(cells["night"])))
        tables.write(folder / "table.parquet", _framed(found, "row", "metric"))
        tables.write(folder / "differences.parquet", _framed(list(differences(evidence)), "metric", "row", "against"))
        tables.write(folder / "claims.parquet", judged(evidence, verdicts=protocol.verdicts))
        tables.write(
            folder / "drift.parquet", _framed(drift(cells, night.isoformat()), "row", "metric", "night", "outside")
        )
        tables.write(folder / "curve.parquet", curve(cells, night.isoformat()))
        return tables.write(folder / f"{KIND}.parquet", cells)

    return store.make(stages.benchmark(outcomes, protocol, night, before, profile), produce)


def curve(cells: Any, night: str) -> pd.DataFrame:
    """Text and image alignment of this night's trainings that were also measured before their end, by share of the steps."""
    tonight = cells[(cells["night"] == night) & (cells["status"] == "measured")]
    early = tonight[tonight["share"] < 1]
    key = ["row", "concepts", "seed"]
    whole = tonight[tonight["share"] == 1].merge(early[key].drop_duplicates(), on=key)
    columns = [*key, "share", "text_alignment", "image_alignment_training"]
    return pd.concat([early[columns], whole[columns]]).sort_values([*key, "share"], ignore_index=True)


def _framed(found: list[tables.Row], *columns: str) -> pd.DataFrame:
    """Rows as a frame that has its columns even when it is empty."""
    return pd.DataFrame([dict(one) for one in found]) if found else pd.DataFrame({column: [] for column in columns})
