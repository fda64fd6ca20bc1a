"""Write what the README shows of concepts: a grid of pictures each and tables of figures.

python -m deployments.showcase cat dog             # writes docs/<concept>.webp; trains and evaluates what the store lacks
python -m deployments.showcase --page README.md    # all that are there, and renews their two tables

The first concept's figures are printed in full, then a line for each of them, with what its true drawings would have as the base
model's VAE brings them back.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from customdiff_core import concepts, figures, profiles, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.cli.bars import bars
from customdiff_core.concepts import Concept
from customdiff_core.evaluation.evaluate import evaluate
from customdiff_core.evaluation.results import Comparison, PromptRow, compare, interval, number, picture, side_by_side
from customdiff_core.pipeline import Pipeline
from customdiff_core.settings import REPOSITORY
from deployments import ceiling
from deployments.pages import show

CONCEPTS = ("cat", "dog", "chair", "car", "tortoise", "house", "flower", "teddybear", "teapot")
PROMPTS, SEEDS, SIDE, GAP, LINE = 16, 4, 64, 3, 15
BETWEEN, APART, BELOW = 12, 24, 10  # pixels between the two models, between columns, and under a prompt
COLUMNS = 2
SHARES = {"recognised": "taken for this one by the judge", "recognised_by_colour": "by its colours"}
CHANGES = {"image_alignment_held_out": "image alignment, held out", "text_alignment": "text alignment"}


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Concepts; by default the README's.")] = None,
    page: Annotated[Path | None, typer.Option(help="A page whose tables of them are renewed.")] = None,
) -> None:
    """Write every concept's grid, and print the tables."""
    names = names or list(CONCEPTS)
    profile, store = profiles.get("openmoji"), Store()
    measured: dict[str, Artifact] = {}
    for name in names:
        with bars() as tell:
            delta = Pipeline(profile, store, tell=tell).train([name], profile.finetune)
            wanted = concepts.load(name)
            metrics = evaluate(wanted, delta, profile, profile.evaluate, store=store, progress=tell(f"evaluate {name}"))
        measured[name] = metrics
        path = REPOSITORY / "docs" / f"{name}.webp"
        grid(wanted, side_by_side(metrics, store, SEEDS)[:PROMPTS]).save(path, quality=90, method=6)
        typer.echo(path.relative_to(REPOSITORY))
    show({"concept": list(table(measured[names[0]], store)), "concepts": list(summary(measured, store))}, page)


def grid(concept: Concept, rows: list[PromptRow]) -> Image.Image:
    """What it was taught with, above the first prompts and seeds: base model to the left of each pair, V* to the right."""
    tiles = [tile(row, concept.modifier_token) for row in rows]
    taught = figures.montage(
        [picture(concept, one, "images") for one in concept.images], len(concept.images), SIDE, gap=GAP
    )
    width, height = tiles[0].size
    top = 2 * LINE + SIDE + 14
    size = COLUMNS * (width + APART) - APART, top + LINE + -(-len(tiles) // COLUMNS) * (height + BELOW) - BELOW
    sheet = Image.new("RGB", size, "white")
    told = f"V* is {concept.modifier_token}, {concept.title}: taught with these {len(concept.images)} pictures"
    figures.write(sheet, (0, 1), told, size[0], 12)
    sheet.paste(taught, (0, LINE + 5), taught)
    for column in range(COLUMNS):
        for name, shift in (("base model", 0), ("customized", (width + BETWEEN) // 2)):
            figures.write(sheet, (column * (width + APART) + shift, top - 3), name, width // 2, 12)
    for place, one in enumerate(tiles):
        sheet.paste(one, (place % COLUMNS * (width + APART), top + LINE + place // COLUMNS * (height + BELOW)))
    return sheet


def tile(row: PromptRow, token: str) -> Image.Image:
    """One prompt: its words above both strips of pictures."""
    strips = [figures.montage(pngs, SEEDS, SIDE, gap=GAP) for pngs in (row.base, row.customized)]
    width, height = strips[0].size
    sheet = Image.new("RGB", (2 * width + BETWEEN, height + LINE), "white")
    for place, (strip, prompt) in enumerate(zip(strips, (row.base_prompt, row.prompt), strict=True)):
        left = place * (width + BETWEEN)
        figures.write(sheet, (left, 1), prompt.replace(token, "V*"), width)
        sheet.paste(strip, (left, LINE), strip)
    return sheet


def table(metrics: Artifact, store: Store) -> Iterator[str]:
    """The figures as a Markdown table."""
    yield "| | base model | customized | difference, paired |"
    yield "|---|---|---|---|"
    for one in compare(tables.read(store, metrics, "metrics")):
        cells = [one.base, one.customized, one.difference]
        texts = [f"{c.value:.3f} ({c.low:.3f} to {c.high:.3f})" if c else "" for c in cells]
        yield f"| {one.title} | {' | '.join(texts)} |"


def summary(measured: dict[str, Artifact], store: Store) -> Iterator[str]:
    """A line a concept: how often it is taken for the right one, what that costs, and what true drawings have."""
    yield f"| | {' | '.join([*SHARES.values(), *CHANGES.values()])} |"
    yield "|---" * (len(SHARES) + len(CHANGES) + 1) + "|"
    for name, metrics in measured.items():
        found = {one.metric: one for one in compare(tables.read(store, metrics, "metrics"))}
        concept = concepts.load(name)
        known = name in ceiling.makers().SUBJECTS
        best = ceiling.measure(concept, ceiling.through_vae(ceiling.true(concept)), store) if known else {}
        shares = [_share(found.get(one), best.get(title)) for one, title in SHARES.items()]
        cells = [*shares, *(_change(found.get(one), best.get(title)) for one, title in CHANGES.items())]
        yield f"| [{name}](docs/{name}.webp) | {' | '.join(cells)} |"


def _share(found: Comparison | None, best: float | None) -> str:
    """A share before and after, and of true drawings; a dash where a concept has no pictures for it."""
    if found is None:
        return "–"
    return f"{found.base.value:.2f} → {found.customized.value:.2f}" + (f" / {best:.2f}" if best is not None else "")


def _change(found: Comparison | None, best: float | None) -> str:
    """A paired difference, and what true drawings would change."""
    if found is None or found.difference is None:
        return "–"
    room = f" / {number(best - found.base.value, signed=True)}" if best is not None else ""
    return f"{number(found.difference.value, signed=True)} ({interval(found.difference, signed=True)}){room}"


if __name__ == "__main__":
    typer.run(main)
