"""Captioned scenes: what the embedded base model is trained on and what its retrieval index holds.

A scene is one drawing (75 %) or two side by side on a flat background, near or far, sometimes off-centre, upside down
or black and white; its caption says so in words: "a far away cat on a blue background", "photo of a pizza and a dog".
Sampling gives plain records and rendering is a pure function of one, so that a corpus can be counted undrawn.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from PIL import Image

from customdiff_core.errors import WorldError
from customdiff_core.seeding import numpy_rng
from customdiff_core.world.drawings import Drawing, render

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (214, 60, 54),
    "orange": (240, 140, 40),
    "yellow": (245, 214, 80),
    "green": (80, 170, 80),
    "teal": (40, 150, 150),
    "blue": (60, 110, 210),
    "purple": (130, 80, 190),
    "pink": (240, 150, 190),
    "brown": (130, 90, 60),
    "gray": (140, 140, 140),
    "black": (25, 25, 25),
    "white": (250, 250, 250),
}
COLOURS = tuple(BACKGROUNDS)

# Category -> factor on its drawings' weights. A concept's category is common on the web, and prior preservation needs
# 200 images of it: with these, 10 000 scenes hold 400 captions or more of each (of cats anyway: they have 11 drawings).
CORPUS_BOOST: Mapping[str, float] = {"cat": 1.0, "dog": 1.5, "teddy bear": 7.0, "house": 2.75}

# Names that contain a category's word and show something else.
IMPOSTORS: Mapping[str, frozenset[str]] = {"dog": frozenset({"hot dog"})}

PLURAL = re.compile(
    "beans|blueberries|cherries|chopsticks|clinking beer mugs|french fries|glasses|gloves|grapes|pancakes|paw prints"
    "|peanuts|socks"
)
VOWEL_SOUND = re.compile(r"(?!ewe|uni)[aeiou]", re.IGNORECASE)

# Place -> direction of the shift from the centre, x to the right and y down.
PLACES: dict[str, tuple[int, int]] = {
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
}
# Range of scales -> how captions say it: far, plain and near.
SIZES = (
    ((0.35, 0.5), ("a far away", "very small")),
    ((0.6, 0.95), ("",)),
    ((1.05, 1.35), ("zoomed in", "close up")),
)
PAIR_SCALES = (0.4, 0.52)


@dataclass(frozen=True)
class Thing:
    """One drawing placed in a scene; lengths are fractions of the picture's side."""

    code: str
    name: str
    scale: float
    x: float  # centre, from the left
    y: float  # centre, from the top
    flip: bool = False


@dataclass(frozen=True)
class Scene:
    """Everything needed to draw a picture, and the caption that describes it."""

    caption: str
    things: tuple[Thing, ...]
    background: str
    upside_down: bool = False
    black_and_white: bool = False


def of_category(name: str, category: str) -> bool:
    """Say whether a drawing's name belongs to the category, by whole words: "cat face" is a cat, "cattle" is not."""
    whole_word = re.search(rf"\b{re.escape(category)}\b", name, re.IGNORECASE)
    return whole_word is not None and name not in IMPOSTORS.get(category, frozenset())


def with_article(name: str) -> str:
    """Put a or an before a name by its sound; plural names stay bare."""
    if PLURAL.fullmatch(name):
        return name
    return f"{'an' if VOWEL_SOUND.match(name) else 'a'} {name}"


def sample_scene(
    drawings: Sequence[Drawing], rng: np.random.Generator, *, boost: Mapping[str, float] | None = None
) -> Scene:
    """Draw one scene; `boost` multiplies the weights of each category it names."""
    odds = _odds(drawings, boost or {})
    return _compose(_pick(drawings, odds, rng), drawings, odds, rng)


def sample_scenes(
    drawings: Sequence[Drawing],
    count: int,
    seed: int,
    *,
    purpose: str = "corpus",
    boost: Mapping[str, float] | None = None,
) -> list[Scene]:
    """Draw `count` scenes, the same for the same arguments; another seed or purpose shares none of its randomness.

    Raises:
        WorldError: if there are no drawings, or a boosted category has none.
    """
    rng = numpy_rng("scenes", purpose, seed)
    odds = _odds(drawings, boost or {})
    return [_compose(_pick(drawings, odds, rng), drawings, odds, rng) for _ in range(count)]


def sample_category_scenes(
    drawings: Sequence[Drawing], category: str, count: int, seed: int, *, purpose: str = "validation"
) -> list[Scene]:
    """Draw `count` scenes whose first thing is of the category: "cat", "dog", "teddy bear", "house".

    Raises:
        WorldError: if no drawing is of the category.
    """
    rng = numpy_rng("category scenes", purpose, category, seed)
    members = [drawing for drawing in drawings if of_category(drawing.name, category)]
    _need_members(category, members, drawings)
    odds, member_odds = _odds(drawings, {}), _odds(members, {})
    return [_compose(_pick(members, member_odds, rng), drawings, odds, rng) for _ in range(count)]


def render_scene(scene: Scene, size: int = 64) -> Image.Image:
    """Draw the scene as a `size` x `size` RGB picture."""
    picture = Image.new("RGB", (size, size), BACKGROUNDS[scene.background])
    for thing in scene.things:
        # One cached master a drawing, 1.5 to 6 times as large as shown: shrinking it is the antialiasing.
        master = render(thing.code, 2 * size)
        side = max(1, round(thing.scale * size))
        shown = master.resize((side, side), Image.Resampling.BICUBIC)
        if thing.flip:
            shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if scene.upside_down:
            # Each thing turns where it stands, so that "on the left" stays true.
            shown = shown.transpose(Image.Transpose.ROTATE_180)
        picture.paste(shown, (round(thing.x * size - side / 2), round(thing.y * size - side / 2)), shown)
    return picture.convert("L").convert("RGB") if scene.black_and_white else picture


def _odds(drawings: Sequence[Drawing], boost: Mapping[str, float]) -> list[float]:
    """Return the cumulative weights of the drawings, boosted."""
    weights = {drawing.code: drawing.weight for drawing in drawings}
    for category, factor in boost.items():
        members = [drawing for drawing in drawings if of_category(drawing.name, category)]
        _need_members(category, members, drawings)
        weights.update({member.code: weights[member.code] * factor for member in members})
    if not weights:
        raise WorldError("drawings: found 0, need at least 1; pass the rows of drawings.csv")
    return list(accumulate(weights.values()))


def _need_members(category: str, members: Sequence[Drawing], drawings: Sequence[Drawing]) -> None:
    if not members:
        raise WorldError(
            f"drawings of category {category!r}: found 0 of {len(drawings)}, need at least 1; "
            "use a word that occurs in drawings.csv"
        )


def _one_of(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.random() * len(choices))]


def _pick(drawings: Sequence[Drawing], odds: Sequence[float], rng: np.random.Generator) -> Drawing:
    return drawings[int(np.searchsorted(odds, rng.uniform(0, odds[-1]), side="right"))]


def _compose(first: Drawing, drawings: Sequence[Drawing], odds: Sequence[float], rng: np.random.Generator) -> Scene:
    """Build a scene around its first drawing: 75 % alone, the rest beside another."""
    background = _one_of(COLOURS, rng)
    upside_down, black_and_white = rng.random() < 0.06, rng.random() < 0.05
    if rng.random() < 0.75:
        thing, size_word, place = _alone(first, rng)
        things = (thing,)
    else:
        second = first if rng.random() < 0.1 else _pick(drawings, odds, rng)
        things, size_word, place = _side_by_side(first, second, rng), "", ""
    styles = (size_word, "upside down" if upside_down else "", "black and white" if black_and_white else "")
    words = [_subject([thing.name for thing in things], [style for style in styles if style], rng), place]
    # A colour that the picture does not show is not named.
    if not black_and_white and rng.random() < 0.75:
        words.append(f"on {with_article(background)} background")
    return Scene(" ".join(filter(None, words)), things, background, upside_down, black_and_white)


def _alone(drawing: Drawing, rng: np.random.Generator) -> tuple[Thing, str, str]:
    """Place one drawing; return it with its size word and its place, "" where they go without saying."""
    scales, size_words = SIZES[rng.choice(len(SIZES), p=(0.15, 0.7, 0.15))]
    scale, size_word = rng.uniform(*scales), _one_of(size_words, rng)
    x, y = 0.5 + rng.uniform(-0.04, 0.04, size=2)
    room, place = (1 - scale) / 2, ""
    # Shifts under an eighth of the picture nobody would name.
    if room > 0.125 and rng.random() < 0.4:
        place = _one_of(tuple(PLACES), rng)
        shift = rng.uniform(0.125, room)
        x, y = x + shift * PLACES[place][0], y + shift * PLACES[place][1]
    return Thing(drawing.code, drawing.name, scale, float(x), float(y), flip=rng.random() < 0.5), size_word, place


def _side_by_side(first: Drawing, second: Drawing, rng: np.random.Generator) -> tuple[Thing, Thing]:
    """Place two drawings in the halves of the picture, in the order that the caption names them."""

    def place(drawing: Drawing, x: float) -> Thing:
        scale, y = rng.uniform(*PAIR_SCALES), 0.5 + rng.uniform(-0.15, 0.15)
        return Thing(drawing.code, drawing.name, scale, x + rng.uniform(-0.02, 0.02), y, flip=rng.random() < 0.5)

    return place(first, 0.26), place(second, 0.74)


def _subject(names: Sequence[str], styles: Sequence[str], rng: np.random.Generator) -> str:
    """Word the subject: "a cat", "photo of a cat"; with styles "close up cat" or "close up photo of a cat".

    The styled photo is the caption of Custom Diffusion's augmentation, which the base model must understand.
    """
    if len(names) == 2 and names[0] == names[1]:
        return " ".join(["two", *styles, "pictures of", with_article(names[0])])
    what = " and ".join(with_article(name) for name in names)
    if not styles:
        return ("", "photo of ", "picture of ")[rng.choice(3, p=(0.5, 0.4, 0.1))] + what
    # "a far away socks" and "upside down cat and dog" are not English, so plurals and pairs are always photos.
    bare = len(names) == 1 and not PLURAL.fullmatch(names[0]) and rng.random() < 0.6
    return " ".join([*styles, names[0] if bare else f"photo of {what}"])
