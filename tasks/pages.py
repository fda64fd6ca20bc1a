"""The markdown pages of the UI, one a stage: built from artifacts alone, so that they need neither run nor server.

Captions, prompts and names are somebody else's text and are escaped. Pictures are WebP `data:` URIs, which it renders.
"""

import json
import re
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from textwrap import wrap
from typing import Any
from urllib.parse import quote

import pandas as pd
from PIL import Image

from customdiff_core import figures, tables
from customdiff_core.artifacts import Artifact, Manifest, Store
from customdiff_core.benchmark.charts import control, scatter, trials
from customdiff_core.benchmark.conclude import markdown
from customdiff_core.benchmark.drift import outside
from customdiff_core.benchmark.history import METRICS, PAPERS, failed
from customdiff_core.benchmark.report import Measured, claimed, claims, grids, night_of
from customdiff_core.benchmark.report import lines as benchmark_lines
from customdiff_core.benchmark.search import Search
from customdiff_core.concepts import Concept
from customdiff_core.errors import TooFewImagesError
from customdiff_core.evaluation.report import is_drawn
from customdiff_core.evaluation.results import Cell, compare, interval, number, side_by_side, sources, views, when
from customdiff_core.lineage import Lineage, lineage_of
from customdiff_core.merging.account import remarks
from customdiff_core.retrieval.account import Account, account
from customdiff_core.settings import Settings

LIMIT = 700_000  # bytes of one page: the UI loads a run's artifacts all at once
SIDES = (96, 72, 48, 32)  # pixels of a thumbnail; the largest with which the page stays below the limit
SHOWN = 24  # single pictures on a page
COLUMNS = 6  # that the UI shows without scrolling
LETTERS = 12  # of a line, so that it still does
STRIP = 8  # images of one prompt beside each other
PROMPTS_SHOWN = 40
CHART_DPI = 130
COSTS_SHOWN = (("seconds", 1, 1), ("memory", 1e6, 0), ("bytes", 1e6, 3))  # the unit, and digits
HOSTS_SHOWN = 10
SAFE = "/:?&=%#+,;@~!$"  # all else in an address is percent-encoded: brackets, quotes and blanks would end the link


def indexed(index: Artifact, here: Store) -> str:
    """Some captioned images of the index, evenly spread."""
    folder = here.path(index)
    table = pd.concat([pd.read_parquet(path) for path in sorted((folder / "metadata").glob("*.parquet"))])
    some = table.iloc[:: max(1, len(table) // SHOWN)].head(SHOWN)
    images = [(folder / str(path)).read_bytes() for path in some["image_path"]]

    def body(side: int) -> str:
        cells = [(_thumbnail(png, side, text), "") for png, text in zip(images, some["caption"], strict=True)]
        captions = "\n".join(f"* {escape(caption)}" for caption in some["caption"].head(COLUMNS))
        return (
            f"{len(table):,} captioned images, searchable by caption. Some, evenly spread:\n\n{_grid(cells)}\n\n"
            f"The first row's captions:\n\n{captions}"
        )

    return _page("Retrieval index", index, here, body)


def built(folder: Path) -> str:
    """What an index folder of one's own was built from, and how to use it."""
    report = json.loads((folder / "report.json").read_text())
    rows = [(escape(name), escape(str(value))) for name, value in report.items() if not isinstance(value, dict)]
    indices = [(f"{kind}\\.index", escape(str(key))) for kind, key in report["indices"].items()]
    fetched = report.get("img2dataset", {}).get("status_dict", {})
    answers = sorted(fetched.items(), key=lambda one: -one[1])[:HOSTS_SHOWN]
    links = _table(("Answer", "Links"), [(escape(one), f"{count:,}") for one, count in answers]) if answers else ""
    return (
        f"## {report['rows']:,} captioned images\n\n{_table(('What', 'Value'), [*rows, *indices])}\n\n{links}\n\n"
        f"Use it: `model.index` = `{str(folder).replace('`', '')}`, with the encoder {escape(report['encoder'])}."
    )


def retrieved(concept: Concept, regularization: Artifact, here: Store) -> str:
    """Where the hits went, the nearest images with captions, links and similarities, the histogram, and all of them."""
    table = tables.read(here, regularization, "regularization", ["url", "caption", "similarity", "image"])
    limit = here.manifest(regularization).recipe.config.get("min_similarity")
    chart = figures.chart_uri(figures.similarity_histogram(table["similarity"].tolist(), limit), CHART_DPI)
    nearest = table.head(SHOWN).to_dict("records")
    story = account(here, regularization)

    def body(side: int) -> str:
        cells = [
            (_thumbnail(hit["image"], side, hit["caption"]), link(str(hit["url"]), number(hit["similarity"])))
            for hit in nearest
        ]
        everything = figures.image_uri(figures.montage(table["image"].tolist(), 20, side // 2))
        words = "\n".join(f"* {link(str(hit['url']), escape(hit['caption']))}" for hit in nearest[:COLUMNS])
        return (
            f"{len(table)} images whose captions are nearest to “{escape(concept.class_prompt)}”. The nearest, each with "
            f"the similarity of its caption, which shows when you point at it:\n\n{_grid(cells)}\n\n"
            f"The first row's captions:\n\n{words}\n\n"
            f"{image(chart, 'Histogram of similarities')}\n\n{_account(story)}"
            f"All of them, in order of similarity:\n\n{image(everything, 'All regularization images')}"
        )

    def drawn(side: int) -> str:
        everything = figures.image_uri(figures.montage(table["image"].tolist(), 20, side // 2))
        return (
            f"{len(table)} images that the base model itself drew for “{escape(concept.class_prompt)}”:\n\n"
            f"{image(everything, 'All regularization images')}"
        )

    return _page("Regularization images", regularization, here, drawn if is_drawn(regularization, here) else body)


def too_few(concept: Concept, error: TooFewImagesError) -> str:
    """How far a retrieval came that did not reach its number, and what to do."""
    story = error.page if isinstance(error.page, Account) else None
    next_step = f"**What to do:** {escape(story.remedy)}.\n\n" if story else ""
    return f"## Too few regularization images for {escape(concept.title)}\n\n{escape(str(error))}\n\n{next_step}{_account(story)}"


def _account(story: Account | None) -> str:
    """The funnel, why hits were dropped, and survival by host."""
    if story is None:
        return ""
    funnel = story.funnel()
    reasons = story.candidates.loc[story.candidates["drop_reason"] != "", "drop_reason"].value_counts()
    dropped = [(escape(str(reason)), f"{count:,}") for reason, count in reasons.items()]
    hosts = [
        (escape(host), f"{tried:,}", f"{100 * pictures / tried:.0f} %")
        for host, tried, pictures in story.hosts(HOSTS_SHOWN)
    ]
    parts = [
        ("Where the hits went:", _table([name.capitalize() for name in funnel], [[f"{n:,}" for n in funnel.values()]])),
        ("Why not:", _table(("Reason", "Hits"), dropped)) if dropped else None,
        ("By host:", _table(("Host", "Links tried", "Gave a picture"), hosts)) if hosts else None,
    ]
    return "".join(f"{head}\n\n{table}\n\n" for head, table in filter(None, parts))


def augmented(concept: Concept, training_set: Artifact, here: Store) -> str:
    """The first views, each with its prompt and the box in which its loss counts."""
    first = views(training_set, here, SHOWN)

    def body(side: int) -> str:
        pictures = [figures.image_uri(figures.masked_view(view["image"], view["mask"], side)) for view in first]
        cells = [
            (image(uri, view["prompt"]), _lines(view["prompt"])) for uri, view in zip(pictures, first, strict=True)
        ]
        return (
            f"The first {len(first)} views of {escape(concept.title)}, as they were drawn, each above its "
            f"prompt. Where a small one lies on an empty canvas, only the outlined box counts in the loss.\n\n{_grid(cells)}"
        )

    return _page("Augmented views", training_set, here, body)


def finetuned(concepts: tuple[Concept, ...], delta: Artifact, here: Store) -> str:
    """The losses by step, how far the weights moved, and what the preview prompts looked like on the way."""
    history, previews = (tables.read(here, delta, name) for name in ("history", "previews"))
    chart = figures.chart_uri(figures.loss_curve(history), CHART_DPI)
    moved = tables.read(here, delta, "weight_change")
    words = " and ".join(escape(one.noun) for one in concepts)
    strips = [(row["step"], tile) for row in previews.to_dict("records") for tile in figures.tiles(row["image"])]

    def body(side: int) -> str:
        cells = [(_thumbnail(tile, side, f"step {step}"), f"step {step}") for step, tile in strips]
        return (
            f"The loss in {len(history)} steps on {words}:\n\n{image(chart, 'Losses by step')}\n\n{_moved(moved)}"
            f"The same prompt and noise, drawn while training:\n\n{_grid(cells)}"
        )

    return _page("Fine-tuning", delta, here, body)


def merged(delta: Artifact, left_out: Sequence[str], here: Store) -> str:
    """Each concept's worst layer, the words that are no constraints, remarks, and what nothing else will show."""
    report, rows = (tables.read(here, delta, name) for name in ("merge", "rows"))
    worst = report.groupby("concept").max(numeric_only=True)
    lines = [
        (
            escape(str(name)),
            f"{one['strength']:g}",
            f"{one['constraints']:.0f}",
            f"{one['constraint_error']:.1e}",
            f"{one['constraint_error_cast']:.1e}",
            number(float(one["error_all_rows"])),
        )
        for name, one in worst.iterrows()
    ]
    head = ("Concept", "Strength", "Constraints", "Error, float64", "Error, saved", "Error of all its words")
    states = rows[rows["state"] != "constraint"].groupby("state")["token"].unique()
    said = [f"* {escape(str(state))}: {', '.join(map(escape, words))}" for state, words in states.items()]
    text = (
        f"{report['layer'].nunique()} layers, solved together. The worst layer of each concept, relative:\n\n"
        f"{_table(head, lines)}\n\nCondition number of the captions' features {report['condition_regularization'].iloc[0]:.1e}, "
        f"of the target words {report['condition_targets'].iloc[0]:.1e}.\n\n"
    )
    if said:
        text += "Words that are no constraints:\n\n" + "\n".join(said) + "\n\n"
    text += _places(lineage_of(delta, here))
    if others := remarks(delta, here):
        text += "Not as one would expect:\n\n" + "\n".join(f"* {escape(one)}" for one in others) + "\n\n"
    if left_out:
        text += "What is not drawn or measured:\n\n" + "\n".join(f"* {escape(line)}" for line in left_out)
    return _page("Merge", delta, here, lambda _: text)


def evaluated_together(concepts: tuple[Concept, ...], together: Artifact, here: Store) -> str:
    """Every prompt by every model, and the figures."""
    table = tables.read(here, together, "metrics")
    measured = table[table["subject"] != "judge"]
    subjects = list(dict.fromkeys(measured["subject"]))
    cells = {(row["metric"], row["subject"]): row for row in tables.records(measured)}
    lines = [
        (
            escape(str(metric)),
            *(
                _cell(Cell(*(float(cells[metric, name][key]) for key in ("value", "ci_low", "ci_high"))))
                for name in subjects
            ),
        )
        for metric in dict.fromkeys(measured["metric"])
    ]
    without = " and ".join(escape(one.noun) for one in concepts if not one.images)
    unseen = f"No image alignment with {without}, since none of the pictures are here.\n\n" if without else ""
    judge = " ".join(
        f"{escape(row['metric'].capitalize())}: {number(row['value'], digits=2)} of {row['n']}."
        for row in tables.records(table[table["subject"] == "judge"])
    )
    sets = {
        name: tables.read(here, one, "samples").sort_values(["prompt_id", "seed"])
        for name, one in sources(together, here).items()
    }

    def body(side: int) -> str:
        strips: list[list[str]] = []
        for prompt in sorted(set(sets[subjects[0]]["prompt_id"]))[:PROMPTS_SHOWN]:
            parts = [part[part["prompt_id"] == prompt] for part in sets.values()]
            words = [str(next(iter(part["prompt"]))) for part in parts]
            strips.append([_strip(list(part["image"]), text, side) for part, text in zip(parts, words, strict=True)])
            strips.append([escape(text) for text in words])
        return (
            f"{' and '.join(escape(one.title) for one in concepts)}.\n\n{_table(('Metric', *map(escape, subjects)), lines)}\n\n"
            f"{unseen}Who is in a picture is a program's answer. {judge}\n\nThe same prompts and noise, unpicked:\n\n"
            f"{_table(list(map(escape, sets)), strips)}"
        )

    return _page("Together in one picture", together, here, body)


def evaluated(concept: Concept, metrics: Artifact, here: Store) -> str:
    """Every prompt drawn by both models, and the metrics with their intervals."""
    table = tables.read(here, metrics, "metrics")
    chart = figures.chart_uri(figures.metrics_chart(table), CHART_DPI)
    lines = [
        (one.title, number(one.base.value), number(one.customized.value), _cell(one.difference, signed=True))
        for one in compare(table)
    ]
    percent = f"{100 * here.manifest(metrics).recipe.config['confidence']:g} %"
    rows = side_by_side(metrics, here)
    shown = rows[:PROMPTS_SHOWN]
    rest = f"\n\n{len(rows) - len(shown)} more prompts are in the report." if len(rows) > len(shown) else ""

    def body(side: int) -> str:
        pairs: list[tuple[str, str]] = []
        for row in shown:
            pairs.append((_strip(row.base, row.base_prompt, side), _strip(row.customized, row.prompt, side)))
            pairs.append((escape(row.base_prompt), escape(row.prompt)))
        return (
            f"{_table(('Metric', 'Base', 'Customized', 'Paired difference'), lines)}\n\n"
            f"In brackets and as bars, {percent} intervals.\n\n{image(chart, 'Metrics with intervals')}\n\n"
            "The same prompts and noise, unpicked:\n\n"
            f"{_table((f'Base: {escape(concept.category)}', f'Customized: {escape(concept.noun)}'), pairs)}{rest}"
        )

    return _page("Base and customized model", metrics, here, body)


def reported(concepts: tuple[Concept, ...], report: Artifact, here: Store) -> str:
    """A link to the report, which a small static server serves."""
    url = f"{Settings().files_url}/report/{report.key}/report.html"
    path = here.path(report) / "report.html"
    titles = " and ".join(escape(one.title) for one in concepts)
    return _page("Report", report, here, lambda _: f"[The whole story of {titles}]({url})\n\nThe file: `{path}`")


def _cost(value: float | None, unit: float, digits: int) -> str:
    """A cost in its unit; a dash where no training of the row knows it, such as the memory of one that was taken up again."""
    return "–" if value is None else f"{value / unit:.{digits}f}"


def benchmarked(benchmark: Artifact, report: Artifact, here: Store) -> str:
    """The claims with their verdicts, the claim table beside the paper's figures, costs, pictures, drift, and what failed."""
    night = night_of(benchmark, here)
    url = f"{Settings().files_url}/report/{report.key}/report.html"
    verdicts = [(*map(escape, told[:3]), f"**{told[3]}**") for told in map(claimed, claims(benchmark, here))]
    found = tables.read(here, benchmark, "table")
    lines = [*benchmark_lines(found, together=False), *benchmark_lines(found, together=True)]
    rows = [
        (
            escape(line.title),
            *(cell for name in PAPERS for cell in _beside_paper(line.figures.get(name))),
            line.trainings,
        )
        for line in lines
    ]
    spent = [
        (
            escape(line.title),
            *(_cost(line.costs.get(name), unit, digits) for name, unit, digits in COSTS_SHOWN),
            f"{100 * line.costs['trained_share']:.2f} %",
        )
        for line in lines
        if line.costs.get("bytes")
    ]
    outside_, lost = (tell(benchmark, date.fromisoformat(night), here) for tell in (outside, failed))
    said = "".join(f"\n* outside its limits: {escape(one)}" for one in outside_)
    said += "".join(f"\n* not measured: {escape(one)}" for one in lost)
    cells: Any = tables.read(here, benchmark, "benchmark")
    cells = cells[(cells["night"] == night) & (cells["share"] == 1) & (cells["status"] == "measured")]
    charted = [
        image(figures.chart_uri(scatter(found, cells, together=kind), CHART_DPI), "text and image alignment")
        for kind in (False, True)
        if benchmark_lines(found, together=kind)
    ]
    nights: Any = tables.read(here, benchmark, "drift")
    several = [name for name in PAPERS if nights.loc[nights["metric"] == name, "night"].nunique() > 1]
    charted += [image(figures.chart_uri(control(nights, name), CHART_DPI), METRICS[name]) for name in several]
    head = ("", *(title for name in PAPERS for title in (METRICS[name], "Published")), "Concepts × trainings")

    def body(side: int) -> str:
        strips = [
            f"{escape(concepts)}, the first noise of: {escape(' · '.join(prompts))}\n\n"
            + _table(("", ""), [(escape(title), image(uri, f"{concepts}, {title}")) for title, uri in shown])
            for concepts, prompts, shown in grids(cells, here, side)
        ]
        claimed_ = _table(("Claim", "Decided by", "Difference", "Verdict"), verdicts)
        costly = _table(("", "Seconds", "Memory, MB", "MB a concept", "Weights trained"), spent)
        return "\n\n".join(
            [f"[The whole page]({url})\n{said}", claimed_, _table(head, rows), *charted, costly, *strips]
        )

    return _page(f"Benchmark of {night}", benchmark, here, body)


def _beside_paper(one: Measured | None) -> tuple[str, str]:
    """A figure with its interval, and the paper's."""
    return (_cell(one.cell), f"{one.paper:g}" if one.paper == one.paper else "–") if one else ("–", "–")


def searched(search: Artifact, wanted: Search, here: Store) -> str:
    """Every trial's figures, the chosen one in bold, and the test on other concepts."""
    chart = image(figures.chart_uri(trials(tables.read(here, search, "trials"), wanted), CHART_DPI), "Trials")
    text = f"{markdown(search, here, escape)}\n\n{chart}"
    return _page(f"Search {escape(wanted.name)}", search, here, lambda _: text)


def generated(samples: Artifact, known: Lineage, here: Store) -> str:
    """Every prompt with its images, seed by seed, and what {0}, {1}, ... stand for with this delta."""
    table = tables.read(here, samples, "samples").sort_values(["prompt_id", "seed"])
    groups = [(str(part["prompt"].iloc[0]), part["image"].tolist()) for _, part in table.groupby("prompt_id")]

    def body(side: int) -> str:
        return _places(known) + "\n\n".join(
            f"{escape(prompt)}\n\n{_strip(images, prompt, side)}" for prompt, images in groups[:PROMPTS_SHOWN]
        )

    return _page("Generated images", samples, here, body)


def pretrained(model: Artifact, measured: Artifact, here: Store) -> str:
    """What base models draw for 64 held-out captions, unpicked, and their figures beside those of true scenes."""
    table = tables.read(here, measured, "figures")
    columns = list(dict.fromkeys(table["model"]))
    wide = table.pivot(index="figure", columns="model", values="value")[columns]
    lines = [(str(name), *("–" if pd.isna(one) else number(one) for one in row)) for name, row in wide.iterrows()]
    grids = {path.stem: Image.open(path) for path in sorted(here.path(measured).glob("*.png"))}

    def body(side: int) -> str:
        width = 16 * side
        shown = {
            name: figures.image_uri(sheet.resize((width, round(sheet.height * width / sheet.width))))
            for name, sheet in grids.items()
        }
        sheets = "\n\n".join(f"### {escape(name)}\n\n{image(uri, name)}" for name, uri in shown.items())
        return f"{_table(['figure', *columns], lines)}\n\n64 held-out captions, one seed, none picked:\n\n{sheets}"

    return _page("Base model", model, here, body)


def provenance(manifest: Manifest, producer: str) -> str:
    """Say whether this run made an artifact, or which one did before."""
    if manifest.producer == producer:
        return f"Made by this run in {manifest.seconds:.1f} s."
    name = manifest.producer.rsplit(" (", 1)[0]
    maker = "the library" if name == "library" else f"run `{name.replace('`', '')}`"
    return f"From the cache: made by {maker} on {when(manifest.created)} ({manifest.seconds:.1f} s then)."


def _page(title: str, artifact: Artifact, here: Store, body: Callable[[int], str]) -> str:
    """Build a page with the largest thumbnails that keep it below the limit.

    It names the artifact by its key, by which other stages take it, and by which a page is found when it must go.
    """
    made = f"{provenance(here.manifest(artifact), here.producer)} Key of the {artifact.kind}: `{artifact.key}`."
    head = f"{made}\n\n## {title}\n\n"
    pages = (head + body(side) for side in SIDES)
    fitting = (page for page in pages if len(page.encode()) < LIMIT)
    return next(fitting, f"{head}The pictures are too many for this page; they are in `{here.path(artifact)}`.")


def escape(value: str) -> str:
    """Escape a text: every punctuation mark gets a backslash, so that none is markup, a link or a table's border."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(str(value).split()))


def link(url: str, text: str) -> str:
    """A link to a page of the web, or the escaped text alone when the address could be anything else."""
    if not url.startswith(("http://", "https://")):
        return text
    return f"[{text}]({quote(url, safe=SAFE)})"


def image(uri: str, label: str) -> str:
    """An image with a tooltip; the UI shows escapes there as they are, so that doubtful characters go instead."""
    words = re.sub(r"[^\w ,.‹›-]", "", " ".join(label.replace("<", "‹").replace(">", "›").split()))
    return f'![{words}]({uri} "{words}")'


def _thumbnail(png: bytes, side: int, label: str) -> str:
    return image(figures.thumbnail_uri(png, side), label)


def _strip(pngs: Sequence[bytes], label: str, side: int) -> str:
    return image(figures.image_uri(figures.montage(pngs, STRIP, side)), label)


def _moved(table: pd.DataFrame) -> str:
    """Mean relative change by kind of layer (the paper's figure 3), where more than one kind was trained."""
    means = table.groupby("kind")["change"].agg(["mean", "max", "size"]) if len(table) else table
    if len(means) < 2:
        return ""
    lines = [
        (str(kind), f"{one['mean']:.4f}", f"{one['max']:.4f}", f"{one['size']:.0f}") for kind, one in means.iterrows()
    ]
    head = ("Layers", "Mean relative change", "Largest", "Weights")
    return f"How far the weights moved, by kind of layer (the paper's figure 3):\n\n{_table(head, lines)}\n\n"


def _places(known: Lineage) -> str:
    """What {0}, {1}, ... of a prompt stand for, where a delta knows several concepts."""
    return f"In prompts: {escape(known.places)}.\n\n" if len(known.concepts) > 1 else ""


def _cell(cell: Cell | None, *, signed: bool = False) -> str:
    return f"{number(cell.value, signed=signed)} ({interval(cell, signed=signed)})" if cell else "–"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lines(text: str) -> str:
    """A longer text in a cell, broken into lines about as wide as a thumbnail."""
    return "<br>".join(escape(line) for line in wrap(text, LETTERS, break_long_words=False, break_on_hyphens=False))


def _grid(cells: Sequence[tuple[str, str]]) -> str:
    """A table of pictures, each with its text below; cells do not wrap in the UI, so that texts are short or of `_lines`."""
    rows: list[list[str]] = []
    for start in range(0, len(cells), COLUMNS):
        part = [*cells[start : start + COLUMNS], *[("", "")] * COLUMNS][: min(COLUMNS, len(cells))]
        rows += [[picture for picture, _ in part]]
        if any(text for _, text in part):
            rows += [[text for _, text in part]]
    return _table(rows[0], rows[1:]) if rows else ""
