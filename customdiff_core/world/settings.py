"""Where the things of a scene stand: flat colours, patterns, and ten simple places drawn by a few shapes.

Every place takes its own small randomness (where the horizon is, which clouds), so that none of them is one fixed picture.
"""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw

from customdiff_core.world.colours import COLOURS, JITTER

Rgb = tuple[int, int, int]
Pencil = ImageDraw.ImageDraw

GRASS, LEAF, SKY, SEA, SAND = (110, 185, 80), (45, 125, 65), (160, 215, 245), (50, 125, 200), (240, 215, 150)
SNOW, NIGHT, WOOD, WALL, ROAD = (244, 248, 252), (28, 34, 84), (160, 105, 60), (235, 225, 205), (100, 100, 108)


def near(colour: Rgb, rng: np.random.Generator, spread: int = JITTER) -> Rgb:
    """A colour around this one."""
    red, green, blue = (int(np.clip(value + rng.integers(-spread, spread + 1), 0, 255)) for value in colour)
    return red, green, blue


def draw(setting: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw a setting: a colour's name, a pattern such as "red striped", or one of PLACES.

    Returns:
        (size, size) RGB.
    """
    canvas = 2 * size  # drawn twice as large: halving it smooths the edges
    colour, _, pattern = setting.partition(" ")
    base = COLOURS.get(colour, SKY)
    picture = Image.new("RGB", (canvas, canvas), near(base, rng))
    if pattern in PATTERNS:
        PATTERNS[pattern](ImageDraw.Draw(picture), canvas, _lighter(base), rng)
    elif setting in PLACES:
        PLACES[setting](ImageDraw.Draw(picture), canvas, rng)
    return picture.resize((size, size), Image.Resampling.BOX)


def _lighter(colour: Rgb) -> Rgb:
    """What a pattern is drawn with: towards white, or towards gray where it is white already."""
    target, share = (0, 0.28) if sum(colour) > 640 else (255, 0.45)
    red, green, blue = (round(value + (target - value) * share) for value in colour)
    return red, green, blue


def _striped(pencil: Pencil, side: int, colour: Rgb, rng: np.random.Generator) -> None:
    step, slant, start = (
        int(rng.integers(side // 9, side // 5)),
        int(rng.integers(-side // 3, side // 3)),
        int(rng.integers(0, side // 5)),
    )
    for x in range(start - side, 2 * side, step):
        pencil.polygon([(x, 0), (x + step // 2, 0), (x + step // 2 + slant, side), (x + slant, side)], fill=colour)


def _dotted(pencil: Pencil, side: int, colour: Rgb, rng: np.random.Generator) -> None:
    step, start = int(rng.integers(side // 7, side // 4)), int(rng.integers(0, side // 5))
    radius = step * 0.28
    for row, y in enumerate(range(start - step, side + step, step)):
        for x in range(start - step + (row % 2) * step // 2, side + step, step):
            pencil.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _checkered(pencil: Pencil, side: int, colour: Rgb, rng: np.random.Generator) -> None:
    step, start = int(rng.integers(side // 8, side // 4)), int(rng.integers(0, side // 5))
    for row, y in enumerate(range(start - 2 * step, side, step)):
        for x in range(start - 2 * step + (row % 2) * step, side, 2 * step):
            pencil.rectangle([x, y, x + step - 1, y + step - 1], fill=colour)


def _ground(pencil: Pencil, side: int, above: Rgb, below: Rgb, rng: np.random.Generator, at: float = 0.62) -> int:
    """Two halves; returns the horizon."""
    horizon = round(side * (at + rng.uniform(-0.07, 0.07)))
    pencil.rectangle([0, 0, side, horizon], fill=near(above, rng))
    pencil.rectangle([0, horizon, side, side], fill=near(below, rng))
    return horizon


def _cloud(pencil: Pencil, side: int, rng: np.random.Generator, height: float) -> None:
    x, y, r = rng.uniform(0, side), rng.uniform(0.05, height) * side, side * rng.uniform(0.04, 0.07)
    for shift, grow in ((-1.2, 0.8), (0, 1.15), (1.3, 0.85)):
        pencil.ellipse(
            [x + r * (shift - grow), y - r * grow, x + r * (shift + grow), y + r * grow], fill=(250, 252, 255)
        )


def _grass(pencil: Pencil, side: int, rng: np.random.Generator) -> None:
    horizon = _ground(pencil, side, SKY, GRASS, rng)
    for _ in range(14):
        x, y = rng.uniform(0, side), rng.uniform(horizon + 3, side)
        pencil.line([(x - 3, y - 5), (x, y), (x + 3, y - 5)], fill=LEAF, width=2)


def _beach(pencil: Pencil, side: int, rng: np.random.Generator) -> None:
    shore = _ground(pencil, side, SKY, SAND, rng, at=0.66)
    pencil.rectangle([0, shore - round(side * rng.uniform(0.16, 0.24)), side, shore], fill=near(SEA, rng))
    pencil.line([(0, shore), (side, shore)], fill=(250, 250, 250), width=3)


def _sea(pencil: Pencil, side: int, rng: np.random.Generator) -> None:
    horizon = _ground(pencil, side, SKY, SEA, rng, at=0.5)
    r = side // 16
    for row, y in enumerate(range(horizon + r, side + r, 2 * r)):
        for x in range(-r * (row % 2) * 2, side + 4 * r, 4 * r):
            pencil.arc([x - r, y, x + r, y + 2 * r], 180, 360, fill=(175, 215, 245), width=2)


def _snow(pencil: Pencil, side: int, rng: np.random.Generator) -> None:
    _ground(pencil, side, (150, 175, 205), SNOW, rng)
    for _ in range(26):
        x, y, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(1, 2.2)
        pencil.ellipse([x - r, y - r, x + r, y + r], fill=(255, 255, 255))


def _night(pencil: Pencil, side: int, rng: np.random.Generator) -> None:
    pencil.rectangle([0, 0, side, side], fill=near(NIGHT, rng))
    for _ in range(22):
        x, y, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.8, 2.2)
        pencil.ellipse([x - r, y - r, x + r, y + r], fill=(255, 244, 190))


def _table(pencil: Pencil, side: int, rng: np.random.Generator) -> None:
    edge = _ground(pencil, side, WALL, WOOD, rng, at=0.66)
    pencil.line([(0, edge), (side, edge)], fill=(90, 55, 30), width=4)
    for y in range(edge + side // 10, side, side // 9):
        pencil.line([(0, y), (side, y)], fill=(140, 90, 50), width=2)


def _road(pencil: Pencil, side: int, rng: np.random.Generator) -> None:
    edge = _ground(pencil, side, SKY, ROAD, rng, at=0.6)
    middle, start = (edge + side) // 2, int(rng.integers(0, side // 5))
    for x in range(start - side // 5, side, side // 5):
        pencil.rectangle([x, middle - 2, x + side // 9, middle + 2], fill=(245, 245, 235))
    pencil.rectangle([0, edge - side // 16, side, edge], fill=near(GRASS, rng))


def _forest(pencil: Pencil, side: int, rng: np.random.Generator) -> None:
    horizon = _ground(pencil, side, (190, 225, 215), GRASS, rng, at=0.7)
    for x in np.linspace(0, side, 7) + rng.uniform(-side / 16, side / 16, 7):
        top, half = horizon - side * rng.uniform(0.38, 0.6), side * rng.uniform(0.07, 0.11)
        pencil.polygon([(x - half, horizon), (x, top), (x + half, horizon)], fill=near(LEAF, rng))


def _sky(pencil: Pencil, side: int, rng: np.random.Generator) -> None:
    pencil.rectangle([0, 0, side, side], fill=near(SKY, rng))
    for _ in range(5):
        _cloud(pencil, side, rng, height=0.95)


def _room(pencil: Pencil, side: int, rng: np.random.Generator) -> None:
    floor = _ground(pencil, side, (240, 200, 170), (185, 135, 95), rng, at=0.74)
    x, y, width = side * rng.uniform(0.08, 0.6), side * 0.12, side * 0.28
    pencil.rectangle([x, y, x + width, y + width], fill=near(SKY, rng), outline=(250, 250, 250), width=4)
    pencil.line([(0, floor), (side, floor)], fill=(250, 250, 250), width=4)


PATTERNS: Mapping[str, Callable[[Pencil, int, Rgb, np.random.Generator], None]] = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
}
PLACES: Mapping[str, Callable[[Pencil, int, np.random.Generator], None]] = {
    "on the grass": _grass,
    "on the beach": _beach,
    "in the sea": _sea,
    "in the snow": _snow,
    "at night": _night,
    "on a table": _table,
    "on the road": _road,
    "in the forest": _forest,
    "in the sky": _sky,
    "in a room": _room,
}
SETTINGS = (*COLOURS, *(f"{colour} {pattern}" for colour in COLOURS for pattern in PATTERNS), *PLACES)
