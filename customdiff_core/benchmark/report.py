"""Report: one self-contained page about a night of the benchmark, made to be printed and read on a phone."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

import pandas as pd

from customdiff_core import figures, stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark import charts, rows
from customdiff_core.benchmark.drift import NIGHTS
from customdiff_core.benchmark.history import COSTS, KIND, METRICS, PAPERS
from customdiff_core.benchmark.protocol import Protocol
from customdiff_core.evaluation.results import Cell, interval, number, template
from customdiff_core.profiles import Profile

PROMPTS_SHOWN, SIDE, DPI = 6, 72, 140
EXTRA = (
    "recognised",
    "recognised_by_colour",
    "image_alignment_held_out",
    "dino_alignment_training",
    "nearest_training",
)


@dataclass(frozen=True)
class Measured:
    """A figure in the claim table: with its interval, the paper's, and the change since the last night."""

    cell: Cell
    paper: float
    change: Cell


@dataclass(frozen=True)
class Line:
    """A row of the claim table."""

    title: str
    name: str
    figures: dict[str, Measured]
    costs: dict[str, float]
    trainings: str


@dataclass(frozen=True)
class Repeated:
    """A figure's change since the last night, of a row whose trainings are known to differ."""

    title: str
    metric: str
    change: Cell

    @property
    def within(self) -> bool:
        """Whether chance is enough to explain it."""
        return self.change.low <= 0 <= self.change.high


@dataclass(frozen=True)
class Difference:
    """One difference that a claim needs."""

    metric: str
    row: str
    against: str
    cell: Cell | None
    paper: float
    verdict: str
    n: str


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict."""

    sentence: str
    verdict: str
    tests: list[Difference]

    @property
    def decisive(self) -> Difference:
        """The first difference that makes the verdict what it is."""
        return next((one for one in self.tests if one.verdict == self.verdict), self.tests[0])


@dataclass(frozen=True)
class Detail:
    """A concept, or several together: each row's figures, and each prompt's by every row."""

    concepts: str
    titles: list[str]
    metrics: list[str]
    measured: list[tuple[str, list[float]]]
    prompts: list[tuple[str, list[tuple[float, float]]]]


def report(benchmark: Artifact, protocol: Protocol, profile: Profile, *, store: Store) -> Artifact:
    """Write the page.

    Args:
        benchmark: the night's table, from `tabulate`.
        protocol: how it was measured.
        profile: the base model.
        store: where it is, and the result goes.

    Returns:
        A `report` artifact: report.html.
    """

    def produce(folder: Path) -> int:
        (folder / "report.html").write_text(render(benchmark, protocol, profile, store), encoding="utf-8")
        return 1

    return store.make(stages.report_benchmark(benchmark, protocol, profile), produce)


def render(benchmark: Artifact, protocol: Protocol, profile: Profile, store: Store) -> str:
    """Return the page's HTML; names, prompts and errors are escaped."""
    night = night_of(benchmark, store)
    table, drift, curve = (tables.read(store, benchmark, name) for name in ("table", "drift", "curve"))
    cells = tables.read(store, benchmark, KIND)
    tonight: Any = cells[cells["night"] == night]
    whole = tonight[(tonight["share"] == 1) & (tonight["status"] == "measured")]
    kinds = [(together, lines(table, together=together)) for together in (False, True)]
    return template(stages.BENCHMARK_TEMPLATE).render(
        protocol=protocol,
        profile=profile,
        night=night,
        nights=sorted(set(cells["night"])),
        kinds=[(together, found, shown(found)) for together, found in kinds if found],
        scatters=[
            (together, figures.chart_uri(charts.scatter(table, whole, together=together), DPI))
            for together, found in kinds
            if found
        ],
        curve=figures.chart_uri(charts.trade_off(curve), DPI) if len(curve) else None,
        claims=claims(benchmark, store),
        controls=[
            (METRICS[metric], figures.chart_uri(charts.control(drift, metric), DPI))
            for metric in PAPERS
            if len(drift) and drift.loc[drift["metric"] == metric, "night"].nunique() > 1
        ],
        noise=noise(table),
        outside=tables.records(drift[(drift["night"] == night) & drift["outside"].astype(bool)]) if len(drift) else [],
        needed=NIGHTS,
        grids=grids(whole, store),
        details=details(whole, (*PAPERS, *EXTRA), store),
        failed=tables.records(tonight[tonight["status"] == "failed"]),
        measured=int((tonight["status"] == "measured").sum()),
        metrics=METRICS,
        titles={name: row.title for name, row in rows.ROWS.items()},
        recipe=store.manifest(benchmark),
    )


def night_of(benchmark: Artifact, store: Store) -> str:
    """A table's night."""
    return str(store.manifest(benchmark).recipe.config["night"])


def lines(table: pd.DataFrame, *, together: bool) -> list[Line]:
    """The claim table's rows of one kind."""
    found: list[Line] = []
    for row in (one for one in rows.ROWS.values() if one.together == together):
        part = {one["metric"]: one for one in tables.records(table[table["row"] == row.name])}
        if part:
            measured = {
                metric: Measured(
                    Cell(one["value"], one["low"], one["high"]),
                    one["paper"],
                    Cell(one["change"], one["change_low"], one["change_high"]),
                )
                for metric, one in part.items()
                if metric in METRICS
            }
            first = next(iter(part.values()))
            said = f"{first['concepts']} × {first['trainings']}"
            spent = {name: part[name]["value"] for name in COSTS if name in part}
            found.append(Line(row.title, row.name, measured, spent, said))
    return found


def noise(table: pd.DataFrame) -> list[Repeated]:
    """The figures that were measured last night too, from other training seeds; what no training changes is none of them."""
    known = table[table["metric"].isin(list(METRICS)) & (table["change_low"] < table["change_high"])]
    return [
        Repeated(
            rows.get(one["row"]).title,
            METRICS[one["metric"]],
            Cell(one["change"], one["change_low"], one["change_high"]),
        )
        for one in tables.records(known)
    ]


def shown(found: list[Line]) -> list[str]:
    """The metrics that any of these rows has: the paper's, and more."""
    return [name for name in (*PAPERS, *EXTRA) if any(name in one.figures for one in found)]


def claims(benchmark: Artifact, store: Store) -> list[Judged]:
    """Every claim with its verdict and its differences."""
    found: list[Judged] = []
    for sentence, part in tables.read(store, benchmark, "claims").groupby("sentence", sort=False):
        tests = [
            Difference(
                one["title"],
                rows.get(one["row"]).title,
                rows.get(one["against"]).title,
                None if pd.isna(one["value"]) else Cell(one["value"], one["low"], one["high"]),
                one["paper"],
                one["test"],
                "" if pd.isna(one["value"]) else f"{one['concepts']:.0f} × {one['trainings']:.0f}",
            )
            for one in tables.records(part)
        ]
        found.append(Judged(str(sentence), str(part["verdict"].iloc[0]), tests))
    return found


def grids(cells: Any, store: Store, side: int = SIDE) -> list[tuple[str, list[str], list[tuple[str, str]]]]:
    """Of each concept or group: its prompts, and a row's first seed of the first prompts as one strip, `side` pixels high."""
    found: list[tuple[str, list[str], list[tuple[str, str]]]] = []
    for concepts, part in cells.groupby("concepts", sort=False):
        strips: list[tuple[str, str]] = []
        prompts: list[str] = []
        for cell in tables.records(part.drop_duplicates("row")):
            drawn = samples_of(cell["cell"], store)
            if drawn is not None:
                first = drawn[drawn["seed"] == drawn["seed"].min()].sort_values("prompt_id").head(PROMPTS_SHOWN)
                strip = figures.montage(first["image"].tolist(), PROMPTS_SHOWN, side)
                strips.append((rows.get(cell["row"]).title, figures.image_uri(strip)))
                prompts = prompts or first["prompt"].tolist()
        found.append((str(concepts), prompts, strips))
    return found


def details(cells: Any, metrics: tuple[str, ...], store: Store) -> list[Detail]:
    """This night's figures concept by concept and prompt by prompt: means over training and sampling seeds.

    Args:
        cells: whole trainings of a night.
        metrics: columns of the concepts' tables, where they were measured; a prompt has text and image alignment.
        store: where the cells' scores are; prompts whose scores or images are gone are left out.
    """
    found: list[Detail] = []
    for concepts, part in cells.groupby("concepts", sort=False):
        means = part.groupby("row", sort=False)[list(metrics)].mean().dropna(axis=1, how="all")
        titles = [rows.get(str(row)).title for row in means.index]
        by_row = {row: _by_prompt(mine["cell"], store) for row, mine in part.groupby("row", sort=False)}
        drawn = samples_of(part["cell"].iloc[0], store)
        said = {} if drawn is None else dict(zip(drawn["prompt_id"], drawn["prompt"], strict=True))
        prompts = [
            (text, [by_row[row].get(number, (nan, nan)) for row in means.index])
            for number, text in sorted(said.items())
        ]
        measured = [
            (title, [float(value) for value in means.loc[row]]) for title, row in zip(titles, means.index, strict=True)
        ]
        found.append(Detail(str(concepts), titles, list(means.columns), measured, prompts))
    return found


def _by_prompt(cells: Iterable[str], store: Store) -> dict[int, tuple[float, float]]:
    """Text and image alignment of each prompt, over all seeds of all these cells."""
    paths = [store.root / "cell" / cell / "scores.parquet" for cell in cells]
    scores = [pd.read_parquet(path) for path in paths if path.is_file()]
    if not scores:
        return {}
    wanted = list(PAPERS[:2])
    table = pd.concat(scores).pivot_table(index="prompt_id", columns="metric", values="value")[wanted].dropna()
    return {
        int(number): (float(text), float(image))
        for number, (text, image) in zip(table.index, table.to_numpy(), strict=True)
    }


def samples_of(cell: str, store: Store) -> Any:
    """The images that a cell drew; None when they are no longer in the store."""
    path = store.root / "cell" / cell / "sources.parquet"
    if not path.is_file():
        return None
    handles = {one.pop("name"): Artifact.model_validate(one) for one in tables.records(pd.read_parquet(path))}
    samples = store.path(handles["samples"]) / "samples.parquet"
    return pd.read_parquet(samples, columns=["prompt", "prompt_id", "seed", "image"]) if samples.is_file() else None


def markdown(benchmark: Artifact, store: Store) -> str:
    """The claim tables as Markdown, for a page: each figure with its interval, the paper's beside it, and every claim.

    A claim of several differences is told by the first one that makes its verdict what it is.
    """
    table, made = tables.read(store, benchmark, "table"), store.manifest(benchmark).recipe
    protocol, by = Protocol.model_validate(made.config["protocol"]), extractors(benchmark, store)
    text: list[str] = []
    for what, together in (("One concept", False), ("Several in one picture", True)):
        if found := lines(table, together=together):
            metrics = " | ".join(f"{METRICS[name]} | {protocol.beside}" for name in PAPERS)
            text += [f"| {what} | {metrics} | concepts × trainings |", "|---" * (2 * len(PAPERS) + 2) + "|"]
            text += [f"| {line.title} | {_beside(line, protocol)} | {line.trainings} |" for line in found]
            text.append("")
    text += [
        f"Intervals of {100 * protocol.confidence:g} %; KID of {protocol.kid_images} pictures a cell in subsets of "
        f"{protocol.kid_subset_size}, by {by['kid']}; the rest by {by['text_alignment']}. The published figures are of Stable "
        "Diffusion 1.4 on photographs, seen by another CLIP: compare orders, not sizes.",
        "",
        "| The paper's claims, here | the difference that decides | | verdict |",
        "|---|---|---|---|",
    ]
    text += [f"| {' | '.join(claimed(one))} |" for one in claims(benchmark, store)]
    return "\n".join(text)


def _beside(line: Line, protocol: Protocol) -> str:
    """A line's figures with their intervals, each beside the published one."""
    found: list[str] = []
    for name in PAPERS:
        one, published = line.figures.get(name), rows.get(line.name).figure(protocol.beside, name)
        low, high = (number(one.cell.low), number(one.cell.high)) if one else ("", "")
        found.append(f"{number(one.cell.value)} ({low} to {high})" if one else "")
        found.append("" if isnan(published) else number(published))
    return " | ".join(found)


def claimed(one: Judged) -> tuple[str, str, str, str]:
    """A claim as a line of a table: the sentence, the difference that decides with its interval, and the verdict."""
    test = one.decisive
    found = f"{number(test.cell.value, signed=True)} ({interval(test.cell, signed=True)})" if test.cell else "–"
    return one.sentence, f"{test.metric}: {test.row} − {test.against}", found, one.verdict


def extractors(benchmark: Artifact, store: Store) -> dict[str, str]:
    """Whose features this night's figures are of, by metric."""
    cells = tables.read(store, benchmark, KIND)
    tonight: Any = cells[(cells["night"] == night_of(benchmark, store)) & (cells["status"] == "measured")]
    paths = [store.root / "cell" / cell / "measures.parquet" for cell in tonight["cell"]]
    known = [pd.read_parquet(path, columns=["metric", "extractor"]) for path in paths if path.is_file()]
    found = dict.fromkeys(METRICS, "an encoder that is no longer known")
    return found | {str(one["metric"]): str(one["extractor"]) for part in known for one in tables.records(part)}
