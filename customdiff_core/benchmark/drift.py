"""Drift: each row's figure night by night, with limits from the nights before (a control chart with prediction limits).

A night's value is expected within

    mean +- t_{n-1}(1 - a/2m) s sqrt(1 + 1/n)

of the n nights before it, whose standard deviation is s. The share a of false alarms is that of a whole night: it is divided
by its m charts (Bonferroni), so that a night in a hundred says something by chance and not one in ten.
"""

from collections.abc import Sequence
from datetime import date
from math import nan
from typing import Any

import numpy as np
from scipy.special import stdtrit

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark import rows
from customdiff_core.benchmark.history import METRICS, PAPERS, measured
from customdiff_core.finetuning import methods

FALSE_ALARMS = 0.01  # of nights
NIGHTS = 3  # before a limit is drawn


def limits(before: Sequence[float], charts: int) -> tuple[float, float]:
    """Where the next night's value is expected; NaN with fewer than NIGHTS nights before it."""
    count = len(before)
    if count < NIGHTS:
        return nan, nan
    quantile = float(stdtrit(count - 1, 1 - FALSE_ALARMS / 2 / charts))
    half = quantile * float(np.std(before, ddof=1)) * (1 + 1 / count) ** 0.5
    centre = float(np.mean(before))
    return centre - half, centre + half


def drift(cells: Any, night: str) -> list[tables.Row]:
    """One row a night of every chart: row, metric, night, value, low, high, outside.

    Nights count that measured what this night did: the same concepts, base model, judges and settings. What no training
    changes is left out: the base model's rows, and KID of a method that trains no weights.

    Args:
        cells: the history, this night's included.
        night: this one.
    """
    whole = cells[(cells["share"] == 1) & (cells["status"] == "measured")]
    whole = whole[whole["judges"].isin(set(whole.loc[whole["night"] == night, "judges"]))]
    charts = [
        (row.name, metric, series)
        for row in rows.ROWS.values()
        if row.way != "base"
        for metric in PAPERS
        if not (metric == "kid" and not methods.get(row.method).trains)
        if len(series := _series(whole[whole["row"] == row.name], metric, night))
    ]
    found: list[tables.Row] = []
    for name, metric, series in charts:
        values = [float(value) for value in series]
        for place, (when, value) in enumerate(zip(series.index, values, strict=True)):
            low, high = limits(values[:place], len(charts))
            outside = bool(value < low or value > high)
            found.append(
                {
                    "row": name,
                    "metric": metric,
                    "night": when,
                    "value": value,
                    "low": low,
                    "high": high,
                    "outside": outside,
                }
            )
    return found


def _series(cells: Any, metric: str, night: str) -> Any:
    """A row's value by night, up to this one."""
    known = cells.dropna(subset=[metric])
    nights = {str(when): (measured(part), len(part)) for when, part in known.groupby("night")}
    same = [when for when, found in nights.items() if found == nights.get(night) and when <= night]
    return known[known["night"].isin(same)].groupby("night")[metric].mean().sort_index()


def outside(benchmark: Artifact, night: date, store: Store) -> list[str]:
    """This night's figures that lie outside their limits, in words."""
    found = tables.read(store, benchmark, "drift")
    hits = tables.records(found[(found["night"] == night.isoformat()) & found["outside"].astype(bool)])
    return [
        f"{rows.get(one['row']).title}: {METRICS[one['metric']]} {one['value']:.3f}, "
        f"expected {one['low']:.3f} to {one['high']:.3f}"
        for one in hits
    ]
