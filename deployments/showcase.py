"""Write what the README shows of a concept, from the store: a grid of pictures and a table of figures.

python -m deployments.showcase cat dog          # after their `customize` runs; writes docs/<concept>.png
"""

import sys
from collections.abc import Iterator

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from customdiff_core import figures, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.evaluation.results import PromptRow, compare, side_by_side
from customdiff_core.settings import REPOSITORY

PROMPTS, SEEDS, SIDE, GAP, LINE = 16, 4, 64, 3, 15
COLUMNS = 2


def main(concepts: list[str]) -> None:
    """Write every concept's grid, and print its table for the README."""
    store = Store()
    console = Console(width=200, highlight=False)
    for concept in concepts:
        metrics = store.newest("metrics", concept=concept)
        path = REPOSITORY / "docs" / f"{concept}.png"
        grid(side_by_side(metrics, store, SEEDS)[:PROMPTS]).save(path, optimize=True)
        console.print(f"{path.relative_to(REPOSITORY)}\n")
        for line in table(metrics, store):
            console.print(line, markup=False)
        console.print()


def grid(rows: list[PromptRow]) -> Image.Image:
    """The first prompts and seeds, base model to the left and customized model to the right of each pair."""
    tiles = [tile(row) for row in rows]
    width, height = tiles[0].size
    sheet = Image.new("RGB", (COLUMNS * (width + 24) - 24, -(-len(tiles) // COLUMNS) * (height + 10) - 10), "white")
    for number, one in enumerate(tiles):
        sheet.paste(one, (number % COLUMNS * (width + 24), number // COLUMNS * (height + 10)))
    return sheet


def tile(row: PromptRow) -> Image.Image:
    """One prompt: its words above both strips of pictures."""
    strips = [figures.montage(pngs, SEEDS, SIDE, gap=GAP) for pngs in (row.base, row.customized)]
    width, height = strips[0].size
    picture = Image.new("RGB", (2 * width + 12, height + LINE), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(10)
    for number, (strip, prompt) in enumerate(zip(strips, (row.base_prompt, row.prompt), strict=True)):
        left = number * (width + 12)
        draw.text((left, 1), prompt, fill="#333333", font=font)
        picture.paste(strip, (left, LINE), strip)
    return picture


def table(metrics: Artifact, store: Store) -> Iterator[str]:
    """The figures as a Markdown table."""
    yield "| | base model | customized | difference, paired |"
    yield "|---|---|---|---|"
    for one in compare(tables.read(store, metrics, "metrics")):
        cells = [one.base, one.customized, one.difference]
        texts = [f"{c.value:.3f} ({c.low:.3f} to {c.high:.3f})" if c else "" for c in cells]
        yield f"| {one.title} | {' | '.join(texts)} |"


if __name__ == "__main__":
    main(sys.argv[1:] or ["cat"])
