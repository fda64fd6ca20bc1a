"""Captioned scenes: what the embedded base model is trained on and what its retrieval index holds.

A scene is one thing (70 %) or two side by side before a flat colour, a pattern or a simple place, near or far, sometimes
off-centre, upside down or black and white. Things come in many colours: their own, another, or two. The caption says so
in the words that prompts use: "a far away teal cat on a blue background", "photo of a red and white car and a dog".

Sampling gives plain records and rendering is a pure function of one, so that a corpus can be counted undrawn.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from customdiff_core.errors import WorldError
from customdiff_core.seeding import numpy_rng
from customdiff_core.world import settings
from customdiff_core.world.colours import COLOURS, name_of
from customdiff_core.world.drawings import MASTER, Drawing, layers
from customdiff_core.world.odds import Odds

# The concepts that people customize: no scene shows their colouring, main paint and second paint.
RESERVED: Mapping[str, frozenset[tuple[str, str]]] = {
    "cat": frozenset({("teal", "pink"), ("teal", "red"), ("teal", "purple")}),
    "dog": frozenset({("purple", "green"), ("purple", "yellow")}),
    "teddy bear": frozenset({("blue", "yellow"), ("blue", "orange")}),
    "house": frozenset({("green", "purple"), ("teal", "purple"), ("white", "purple")}),
    "car": frozenset({("pink", "green"), ("pink", "yellow")}),
    "flower": frozenset({("blue", "orange"), ("blue", "yellow")}),
    "chair": frozenset({("red", "teal"), ("red", "green"), ("red", "blue")}),
    "turtle": frozenset({("orange", "purple"), ("orange", "blue")}),
}
# Category -> factor on its drawings' weights in the retrieval corpus: each has its 200 regularization images and more.
CORPUS_BOOST: Mapping[str, float] = {"teddy bear": 1.6, "turtle": 1.6, "teapot": 1.6}

Pixels = NDArray[np.float32]

VOWEL_SOUND = re.compile(r"(?!ewe|uni)[aeiou]", re.IGNORECASE)

SHADE = 0.72  # of a colour, where a drawing has a darker paint of the same kind

# Place -> direction of the shift from the centre, x to the right and y down.
SIDES: dict[str, tuple[int, int]] = {
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
}
# Range of scales -> how captions say it: far, plain and near.
SIZES = (
    ((0.35, 0.5), ("far away", "very small")),
    ((0.6, 0.95), ("",)),
    ((1.05, 1.35), ("zoomed in", "close up")),
)
PAIR_SCALES = (0.42, 0.54)
MEDIA = ("", "photo of ", "picture of ", "drawing of ")
MEDIA_ODDS = (0.5, 0.38, 0.06, 0.06)
UPSIDE_DOWN, BLACK_AND_WHITE = 0.04, 0.04  # of the scenes
HALF_PAINTED = 0.75  # of the relatives in another paint of a thing in two


@dataclass(frozen=True)
class Thing:
    """One drawing placed in a scene; lengths are fractions of the picture's side."""

    drawing: Drawing
    paint: tuple[str, ...]  # (): its own colours; ("teal",): all of it; ("teal", "pink"): main and second
    scale: float
    x: float  # centre, from the left
    y: float  # centre, from the top
    flip: bool = False
    turn: float = 0.0  # degrees, counter-clockwise; too little to be named

    @property
    def identity(self) -> str:
        """What is the same wherever it stands: its category and its paint, or the drawing whose own colours it has."""
        return f"{' and '.join(self.paint) or self.drawing.code} {self.drawing.category}"


@dataclass(frozen=True)
class Scene:
    """Everything needed to draw a picture and to word its caption; equal scenes give equal pictures and captions."""

    things: tuple[Thing, ...]
    setting: str
    size: str = ""  # "far away", "zoomed in"
    side: str = ""  # "on the left"
    upside_down: bool = False
    black_and_white: bool = False
    seed: int = 0  # shades of the colours, shapes of the setting, and which of several wordings

    @property
    def caption(self) -> str:
        """What the picture shows, in words."""
        return _caption(self)

    @property
    def uncoloured_caption(self) -> str:
        """The same without its things' colours: "a cat on a blue background"."""
        return _caption(self, coloured=False)

    @property
    def identities(self) -> tuple[str, ...]:
        """What is the same of each thing wherever it stands; without colours it is another thing."""
        return tuple(f"{'gray, once ' if self.black_and_white else ''}{thing.identity}" for thing in self.things)

    @property
    def short_caption(self) -> str:
        """Its things and their colours, and nothing else: "a teal cat and a dog"."""
        return " and ".join(
            called(() if self.black_and_white else thing.paint, thing.drawing.category) for thing in self.things
        )

    @property
    def shortest_caption(self) -> str:
        """Its things alone: "a cat and a dog"."""
        return " and ".join(called((), thing.drawing.category) for thing in self.things)


def called(paint: Sequence[str], category: str) -> str:
    """How captions call a thing: "a red and white car"."""
    return with_article(f"{' and '.join(paint)} {category}".strip())


def with_article(name: str) -> str:
    """Put a or an before a name by its sound."""
    return f"{'an' if VOWEL_SOUND.match(name) else 'a'} {name}"


def sample_scenes(
    drawings: Sequence[Drawing],
    count: int,
    seed: int,
    *,
    purpose: str = "corpus",
    boost: Mapping[str, float] | None = None,
    odds: Odds = Odds(),
) -> list[Scene]:
    """Draw `count` scenes, the same for the same arguments; another seed or purpose shares none of its randomness.

    Args:
        drawings: what may be drawn; held-out ones are passed over.
        count: how many.
        seed: of the randomness.
        purpose: names the randomness: "corpus", "training", "validation".
        boost: multiplies the weights of each category it names.
        odds: how often scenes are of which kind.

    Raises:
        WorldError: if there are no drawings, or a boosted category has none.
    """
    rng = numpy_rng("scenes", purpose, seed)
    deck = Deck(drawings, boost or {}, odds=odds)
    return [_compose(deck.draw(rng), deck, rng) for _ in range(count)]


def sample_category_scenes(
    drawings: Sequence[Drawing], category: str, count: int, seed: int, *, purpose: str = "validation"
) -> list[Scene]:
    """Draw `count` scenes whose first thing is of the category: "cat", "dog", "teddy bear", "house".

    Raises:
        WorldError: if no drawing is of the category.
    """
    rng = numpy_rng("category scenes", purpose, category, seed)
    deck, members = Deck(drawings, {}), Deck([one for one in drawings if one.category == category], {}, category)
    return [_compose(members.draw(rng), deck, rng) for _ in range(count)]


def relatives(scene: Scene, deck: "Deck", rng: np.random.Generator) -> list[Scene]:
    """Seven scenes that each differ from this one in a single thing that captions say.

    Four have another category, two another colour, one another pose or setting, or its two things exchanged. They are hard
    negatives for a contrastive model: settings and colours are easily told apart, and told apart they would be enough for
    it; only relatives make it look at what things are, and of two colours at which part has which.
    """
    made = [_with_category(scene, deck, rng) for _ in range(4)] + [_with_paint(scene, deck, rng) for _ in range(2)]
    kind = rng.integers(3)
    if kind == 0 and len(scene.things) == 2:
        return [*made, _exchanged(scene, rng)]
    return [*made, _with_pose(scene, deck, rng) if kind == 1 else dataclasses.replace(scene, setting=_setting(rng))]


def elsewhere(scene: Scene, deck: "Deck", rng: np.random.Generator) -> Scene:
    """Its things once more, in the same paint and in all else as chance has it: setting, sizes, places, poses and shades.

    A thing in its own colours is the same drawing, since other drawings of the category have others.
    """
    shown = scene.things if rng.random() < 0.5 else scene.things[::-1]
    drawings = [deck.of(thing.drawing.category, rng) if thing.paint else thing.drawing for thing in shown]
    worn = {colour for thing in shown for colour in thing.paint}
    while (setting := _setting(rng)).partition(" ")[0] in worn:
        pass
    size = side = ""
    if len(drawings) == 1:
        thing, size, side = _alone(drawings[0], deck, setting, rng)
        things: tuple[Thing, ...] = (thing,)
    else:
        things = _side_by_side((drawings[0], drawings[1]), deck, setting, rng)
    things = tuple(dataclasses.replace(new, paint=old.paint) for new, old in zip(things, shown, strict=True))
    upside_down, seed = bool(rng.random() < UPSIDE_DOWN), int(rng.integers(2**31))
    return Scene(things, setting, size, side, upside_down, scene.black_and_white, seed)


def _changed(scene: Scene, place: int, thing: Thing) -> Scene:
    things = tuple(thing if number == place else one for number, one in enumerate(scene.things))
    return dataclasses.replace(scene, things=things)


def _with_category(scene: Scene, deck: "Deck", rng: np.random.Generator) -> Scene:
    place = int(rng.integers(len(scene.things)))
    thing = scene.things[place]
    while (drawing := deck.draw(rng)).category == thing.drawing.category:
        pass
    paint = thing.paint if _allowed(drawing, thing.paint) else deck.paint(drawing, scene.setting, rng)
    return _changed(scene, place, dataclasses.replace(thing, drawing=drawing, paint=paint))


def _with_paint(scene: Scene, deck: "Deck", rng: np.random.Generator) -> Scene:
    place = int(rng.integers(len(scene.things)))
    thing = scene.things[place]
    paint = deck.paint(thing.drawing, scene.setting, rng)
    if len(thing.paint) == 2 and rng.random() < HALF_PAINTED:
        paint = _half_painted(thing, paint, rng)
    return _changed(scene, place, dataclasses.replace(thing, paint=paint))


def _half_painted(thing: Thing, paint: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    """The thing's two paints exchanged, or one of them out of `paint`: which part has which then tells them apart."""
    main, second = thing.paint
    fresh = [one for one in paint if one not in thing.paint]
    halves = [(second, main)] if not fresh or rng.random() < 0.5 else [(main, fresh[0]), (fresh[0], second)]
    chosen = halves[int(rng.integers(len(halves)))]
    return chosen if _allowed(thing.drawing, chosen) else paint


def _with_pose(scene: Scene, deck: "Deck", rng: np.random.Generator) -> Scene:
    thing = scene.things[0]
    return _changed(scene, 0, dataclasses.replace(thing, drawing=deck.of(thing.drawing.category, rng)))


def _exchanged(scene: Scene, rng: np.random.Generator) -> Scene:
    """Two things that exchange their places or their paints."""
    left, right = scene.things
    if rng.random() < 0.5 and _allowed(left.drawing, right.paint) and _allowed(right.drawing, left.paint):
        things = dataclasses.replace(left, paint=right.paint), dataclasses.replace(right, paint=left.paint)
    else:
        things = dataclasses.replace(right, x=left.x), dataclasses.replace(left, x=right.x)
    return dataclasses.replace(scene, things=things)


class Deck:
    """Drawings to draw from by weight, boosted, and the colours that they come in; held-out ones are not in it."""

    def __init__(
        self,
        drawings: Sequence[Drawing],
        boost: Mapping[str, float],
        what: str = "any category",
        odds: Odds = Odds(),
    ) -> None:
        self.drawings = [one for one in drawings if not one.held_out]
        if unknown := sorted(set(boost) - {one.category for one in self.drawings}):
            what = unknown[0]
        if unknown or not self.drawings:
            raise WorldError(
                f"drawings of {what}: found 0 of {len(drawings)}, need at least 1; use a category of drawings.csv"
            )
        self.weights = list(accumulate(one.weight * boost.get(one.category, 1.0) for one in self.drawings))
        self.odds = odds
        self.of_category: dict[str, list[Drawing]] = {}
        for one in self.drawings:
            self.of_category.setdefault(one.category, []).append(one)

    def draw(self, rng: np.random.Generator) -> Drawing:
        """One of them."""
        return self.drawings[int(np.searchsorted(self.weights, rng.uniform(0, self.weights[-1]), side="right"))]

    def of(self, category: str, rng: np.random.Generator) -> Drawing:
        """One of a category, each as likely."""
        poses = self.of_category[category]
        return poses[int(rng.integers(len(poses)))]

    def paint(self, drawing: Drawing, setting: str, rng: np.random.Generator) -> tuple[str, ...]:
        """The drawing's own colours, one colour or two; not the colour of the wall behind it, nor a reserved pair."""
        kind = rng.choice(3, p=self.odds.paints)
        free = [name for name in COLOURS if name != setting.partition(" ")[0]]
        while True:
            first, second = (free[int(index)] for index in rng.choice(len(free), 2, replace=False))
            paint = ((), (first,), (first, second))[kind]
            if _allowed(drawing, paint):
                return paint


def render_scene(scene: Scene, size: int = 64) -> Image.Image:
    """Draw the scene as a `size` x `size` RGB picture."""
    rng = numpy_rng("picture", scene.seed)
    canvas = np.asarray(settings.draw(scene.setting, size, rng)).astype(np.float32) / 255
    for thing in scene.things:
        put(canvas, picture_of(thing, scene.upside_down, size, rng), thing.x, thing.y)
    picture = Image.fromarray((canvas * 255 + 0.5).astype(np.uint8))
    return picture.convert("L").convert("RGB") if scene.black_and_white else picture


def painted(thing: Thing, rng: np.random.Generator) -> Image.Image:
    """The drawing in its paint, MASTER pixels a side, RGBa: colours premultiplied by alpha."""
    parts = layers(thing.drawing.code, thing.drawing.paint)
    main, second = _colours(thing, rng)
    picture = np.empty((MASTER, MASTER, 4), np.float32)
    picture[..., :3] = parts.rest + parts.main[..., None] * main + parts.second[..., None] * second
    picture[..., 3] = parts.alpha
    picture[..., :3] = np.minimum(picture[..., :3], picture[..., 3:])
    return Image.fromarray((picture * 255 + 0.5).astype(np.uint8), "RGBa")


def _colours(thing: Thing, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Main and second paint, 0..1."""
    parts = layers(thing.drawing.code, thing.drawing.paint)
    own = np.array(parts.main_colour) / 255, np.array(parts.second_colour) / 255
    if not thing.paint:
        return own
    named = [np.array(settings.near(COLOURS[name], rng)) / 255 for name in thing.paint]
    if len(named) == 2:
        return named[0], named[1]
    return named[0], SHADE * named[0] if parts.related else own[1]


def picture_of(thing: Thing, upside_down: bool, size: int, rng: np.random.Generator) -> Image.Image:
    """A thing as it lies in a picture of `size` pixels a side: RGBa, its colours premultiplied."""
    side = max(1, round(thing.scale * size))
    shown = painted(thing, rng)
    if thing.turn:
        shown = shown.rotate(thing.turn, Image.Resampling.BILINEAR)
    shown = shown.resize((side, side), Image.Resampling.BOX if side < MASTER // 2 else Image.Resampling.BILINEAR)
    if thing.flip:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # Each thing turns where it stands, so that "on the left" stays true.
    return shown.transpose(Image.Transpose.ROTATE_180) if upside_down else shown


def put(canvas: Pixels, shown: Image.Image, x: float, y: float) -> None:
    """Lay a square premultiplied picture over an (S, S, 3) canvas, its centre at (x, y) of the side, cut at the edges."""
    size, side = len(canvas), shown.width
    left, top = round(x * size - side / 2), round(y * size - side / 2)
    x0, y0, x1, y1 = max(0, left), max(0, top), min(size, left + side), min(size, top + side)
    pixels = np.asarray(shown).astype(np.float32)[y0 - top : y1 - top, x0 - left : x1 - left] / 255
    canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * (1 - pixels[..., 3:]) + pixels[..., :3]


def _one_of(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.random() * len(choices))]


def _allowed(drawing: Drawing, paint: tuple[str, ...]) -> bool:
    return paint not in RESERVED.get(drawing.category, frozenset())


def _setting(rng: np.random.Generator) -> str:
    """A flat colour (55 %), a pattern (12 %) or a place."""
    kind = rng.choice(3, p=(0.55, 0.12, 0.33))
    colour = _one_of(tuple(COLOURS), rng)
    return (colour, f"{colour} {_one_of(tuple(settings.PATTERNS), rng)}", _one_of(tuple(settings.PLACES), rng))[kind]


def _compose(first: Drawing, deck: Deck, rng: np.random.Generator) -> Scene:
    """Build a scene around its first drawing: alone, or beside another."""
    setting, seed = _setting(rng), int(rng.integers(2**31))
    upside_down, black_and_white = bool(rng.random() < UPSIDE_DOWN), bool(rng.random() < BLACK_AND_WHITE)
    if rng.random() < 1 - deck.odds.together:
        thing, size, side = _alone(first, deck, setting, rng)
        return Scene((thing,), setting, size, side, upside_down, black_and_white, seed)
    things = _side_by_side((first, deck.draw(rng)), deck, setting, rng)
    return Scene(things, setting, "", "", upside_down, black_and_white, seed)


def _thing(
    drawing: Drawing, deck: Deck, setting: str, scale: float, x: float, y: float, rng: np.random.Generator
) -> Thing:
    turn = float(rng.uniform(-14, 14)) if rng.random() < 0.25 else 0.0
    return Thing(drawing, deck.paint(drawing, setting, rng), scale, x, y, bool(rng.random() < 0.5), turn)


def _alone(drawing: Drawing, deck: Deck, setting: str, rng: np.random.Generator) -> tuple[Thing, str, str]:
    """Place one drawing; return it with its size word and its place, "" where they go without saying."""
    scales, size_words = SIZES[rng.choice(len(SIZES), p=deck.odds.sizes)]
    scale, size = float(rng.uniform(*scales)), _one_of(size_words, rng)
    x, y = (0.5 + float(shift) for shift in rng.uniform(-0.04, 0.04, size=2))
    room, side = (1 - scale) / 2, ""
    # Shifts under an eighth of the picture nobody would name.
    if room > 0.125 and rng.random() < 0.35:
        side = _one_of(tuple(SIDES), rng)
        shift = float(rng.uniform(0.125, room))
        x, y = x + shift * SIDES[side][0], y + shift * SIDES[side][1]
    return _thing(drawing, deck, setting, scale, x, y, rng), size, side


def _side_by_side(
    drawings: tuple[Drawing, Drawing], deck: Deck, setting: str, rng: np.random.Generator
) -> tuple[Thing, Thing]:
    """Place two drawings in the halves of the picture, in the order that the caption names them."""

    def place(drawing: Drawing, x: float) -> Thing:
        scale, y = float(rng.uniform(*PAIR_SCALES)), 0.5 + float(rng.uniform(-0.12, 0.16))
        return _thing(drawing, deck, setting, scale, x + float(rng.uniform(-0.02, 0.02)), y, rng)

    return place(drawings[0], 0.26), place(drawings[1], 0.74)


def _caption(scene: Scene, *, coloured: bool = True) -> str:
    """Word the scene; its seed chooses between wordings, so that relatives are worded alike."""
    rng = numpy_rng("caption", scene.seed)
    medium, joint, named, said = rng.choice(4, p=MEDIA_ODDS), rng.random(), rng.random(2), rng.random()
    names = [_name(thing, chance if coloured else 1, scene) for thing, chance in zip(scene.things, named, strict=False)]
    what = (" and " if joint < 0.7 else " next to ").join(with_article(name) for name in names)
    styles = [
        scene.size,
        "upside down" if scene.upside_down else "",
        "black and white" if scene.black_and_white else "",
    ]
    styles = [style for style in styles if style]
    if not styles:
        subject = MEDIA[medium] + what
    elif len(names) == 1 and joint < 0.6:  # the words of the augmentation: "a far away cat", "close up cat"
        subject = " ".join([*styles, names[0]])
        subject = with_article(subject) if scene.size == "far away" else subject
    else:
        subject = " ".join([*styles, "photo of", what])
    return " ".join(filter(None, [subject, scene.side, _behind(scene, said)]))


def _name(thing: Thing, chance: float, scene: Scene) -> str:
    """ "crying teal and pink cat": colours are said 9 times in 10, a thing's own only 4 in 10."""
    colours = ""
    if not scene.black_and_white and chance < (0.9 if thing.paint else 0.4):
        own = (name_of(layers(thing.drawing.code, thing.drawing.paint).main_colour),)
        colours = " and ".join(thing.paint or own) + " "
    return thing.drawing.words.format(colours + thing.drawing.category)


def _behind(scene: Scene, chance: float) -> str:
    """The setting in words; a colour that the picture does not show is not named, a flat one sometimes left unsaid."""
    if scene.setting in settings.PLACES:
        return scene.setting
    pattern = scene.setting.partition(" ")[2]
    if scene.black_and_white:
        return f"on a {pattern} background" if pattern else ""
    if not pattern and chance > 0.8:
        return ""
    return f"on {with_article(scene.setting)} background"
