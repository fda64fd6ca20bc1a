"""Charts of a night: the paper's figure 8, the trade-off over training steps, and the nights' control charts."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from customdiff_core import figures
from customdiff_core.benchmark import rows
from customdiff_core.benchmark.conclude import BASE
from customdiff_core.benchmark.history import METRICS
from customdiff_core.benchmark.rows import Row
from customdiff_core.benchmark.search import Search

COLOURS = ("#98a0ac", "#d1366f", "#d98324", "#5b7fd1", "#2a9d8f", "#8f5bb5", "#7a8f2a")
TEXT, IMAGE = "text_alignment", "image_alignment_training"
PANELS = 2  # beside each other in the control charts


def colour(row: Row) -> str:
    """A row's colour, the same in every chart: by its place among its kind."""
    kind = [one.name for one in rows.ROWS.values() if one.together == row.together]
    return COLOURS[kind.index(row.name) % len(COLOURS)]


def scatter(table: pd.DataFrame, cells: Any, *, together: bool) -> Figure:
    """Text and image alignment of each row, as in figure 8: a dot a cell, and an ellipse with both intervals as its axes.

    Args:
        table: the night's figures with their intervals.
        cells: the night's cells.
        together: rows of several concepts, or of one.
    """
    figure, axes = figures.chart(4.8, 3.8)
    for row in (one for one in rows.ROWS.values() if one.together == together):
        part = table[table["row"] == row.name].set_index("metric")
        if not {TEXT, IMAGE} <= set(part.index):
            continue
        x, y = (part.loc[metric] for metric in (TEXT, IMAGE))
        shade = colour(row)
        mine = cells[cells["row"] == row.name]
        axes.scatter(mine[TEXT], mine[IMAGE], s=9, color=shade, alpha=0.55, linewidths=0)
        axes.plot([x["value"]], [y["value"]], "o", color=shade, markersize=6, label=row.title)
        size = x["high"] - x["low"], y["high"] - y["low"]
        centre = (x["high"] + x["low"]) / 2, (y["high"] + y["low"]) / 2
        axes.add_patch(Ellipse(centre, *size, facecolor=shade, edgecolor=shade, alpha=0.16))
    axes.autoscale_view()
    axes.set_xlabel("text alignment")
    axes.set_ylabel("image alignment")
    _legend(figure)
    return figure


def trade_off(curve: pd.DataFrame) -> Figure:
    """Where each row's training went, from few steps to all: a line a training, its shares of the steps beside the dots."""
    figure, axes = figures.chart(4.8, 3.8)
    for _, part in curve.groupby(["row", "concepts", "seed"], sort=False):
        row = rows.get(str(part["row"].iloc[0]))
        axes.plot(part[TEXT], part[IMAGE], "-o", color=colour(row), markersize=4, linewidth=1.4, label=row.title)
        for point in part.to_dict("records"):
            place = (point[TEXT], point[IMAGE])
            offset: dict[str, Any] = {"textcoords": "offset points", "xytext": (4, 3)}
            axes.annotate(f"{point['share']:.0%}", place, fontsize=6, color=figures.INK, **offset)
    axes.set_xlabel("text alignment")
    axes.set_ylabel("image alignment")
    _legend(figure)
    return figure


def trials(found: Any, search: Search) -> Figure:
    """A search's trials on its concept, numbered in their order; the chosen one filled, the others open."""
    figure, axes = figures.chart(4.8, 3.2)
    mine = found[found["concept"] == search.concept]
    base, tried = mine[mine["change"] == BASE], mine[mine["change"] != BASE]
    axes.scatter(base["text"], base["image"], s=36, marker="s", color=COLOURS[0], label="base model")
    axes.axvline(float(base["text"].iloc[0]) - search.lost, color=COLOURS[0], linewidth=1, linestyle=":")
    for place, row in enumerate(tried.to_dict("records"), 1):
        if not row["trainings"]:
            continue
        face = COLOURS[1] if row["chosen"] else "none"
        axes.plot([row["text"]] * 2, [row["image_low"], row["image_high"]], color=COLOURS[1], linewidth=1)
        axes.scatter([row["text"]], [row["image"]], s=30, facecolors=face, edgecolors=COLOURS[1])
        place_of: dict[str, Any] = {"textcoords": "offset points", "xytext": (5, 3)}
        axes.annotate(str(place), (row["text"], row["image"]), fontsize=6.5, color=figures.INK, **place_of)
    axes.set_xlabel("text alignment (dotted: the least that is allowed)")
    axes.set_ylabel("image alignment")
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """Two columns above the chart, within its width."""
    figure.legend(
        frameon=False,
        labelcolor=figures.INK,
        fontsize=6.5,
        loc="outside upper left",
        ncols=2,
        columnspacing=1.0,
        handletextpad=0.3,
        handlelength=1.4,
    )


def control(drift: Any, metric: str) -> Figure:
    """A panel a row: each night's value, between the limits that the nights before it set; outside is marked."""
    part = drift[drift["metric"] == metric]
    names = list(dict.fromkeys(part["row"]))
    lines = -(-len(names) // PANELS)
    figure = Figure(figsize=(6.4, 0.4 + 1.25 * lines), layout="constrained")
    for place, name in enumerate(names, 1):
        axes = figures.plain(figure.add_subplot(lines, PANELS, place))
        series = part[part["row"] == name].reset_index(drop=True)
        shade = colour(rows.get(str(name)))
        axes.fill_between(series.index, series["low"], series["high"], color=shade, alpha=0.16, linewidth=0, step="mid")
        axes.plot(series.index, series["value"], "-o", color=shade, markersize=3, linewidth=1)
        out = series[series["outside"].astype(bool)]
        axes.plot(out.index, out["value"], "o", color=figures.MARK, markersize=6)
        axes.set_title(rows.get(str(name)).title, fontsize=7, color=figures.INK, loc="left")
        axes.set_xticks([0, len(series) - 1] if len(series) > 1 else [0])
        axes.set_xticklabels([str(series["night"].iloc[tick])[5:] for tick in axes.get_xticks().astype(int)])
        axes.tick_params(labelsize=6)
    figure.suptitle(METRICS[metric], fontsize=9, color=figures.INK, x=0.01, ha="left")
    return figure
