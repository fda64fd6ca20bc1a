"""Validation: what a base model can do, by one program for any two of them.

Every figure is of scenes that were never trained on, drawn from a random stream of their own: how well the VAE brings
pictures back, how often the judge names a thing and its colour in true and in generated pictures, how often both of two
things are there and both colours of one, each on its part, and how far generated pictures are from true ones as a set (KID).
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import Runtime, SampleConfig
from customdiff_core.devices import resolve_device
from customdiff_core.evaluation.kid import kid
from customdiff_core.finetuning.components import load_components, load_vae
from customdiff_core.pretraining import stages
from customdiff_core.pretraining.vae import fidelity
from customdiff_core.profiles import EncoderSource, ModelSource
from customdiff_core.progress import Progress, silent
from customdiff_core.retrieval.encoder import Encoder, Vectors
from customdiff_core.sampling import draw_images
from customdiff_core.settings import Settings
from customdiff_core.world.colours import COLOURS
from customdiff_core.world.drawings import Drawing, load_drawings
from customdiff_core.world.scenes import Scene, called, render_scene, sample_scenes

GRID = 64
SUBSETS = 50
SIZE = 64  # pixels of the true pictures; a judge brings every picture to its own
Verdicts = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """One figure: of which model ("true scenes" where it is of none), what, how much and of how many."""

    model: str
    figure: str
    value: float
    n: int


def validate(
    models: dict[str, ModelSource],
    judge: EncoderSource,
    sample: SampleConfig,
    *,
    count: int,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Artifact:
    """Measure base models against true scenes and each other.

    Args:
        models: by the name that the table gives them.
        judge: the CLIP that names what it sees; no model is conditioned by it.
        sample: how pictures are drawn.
        count: scenes of one thing; half as many of two, and of one in two colours.
        store: where the result goes.
        runtime: device.
        progress: told while pictures are drawn.

    Returns:
        A `base_model_figures` artifact: figures.parquet (model, figure, value, n) and a grid of 64 prompts a model.
    """

    def produce(folder: Path) -> int:
        drawings = load_drawings(Settings().data / "world" / "drawings.csv")
        asked = tests(drawings, count)
        scenes = asked.singles + asked.couples + asked.dressed
        jury = Jury(judge, drawings, runtime)
        true = _drawn(scenes, SIZE)
        rows = jury.rows("true scenes", asked, true)
        rows += jury.rows("true scenes, held-out drawings", *_unseen(drawings, count))
        for name, source in models.items():
            device = resolve_device(runtime.device)
            parts, vae = load_components(source).to(device), load_vae(source).to(device)
            pixels = np.stack([np.asarray(picture) for picture in _drawn(scenes, vae.config.sample_size)])
            rows.append(Row(name, "VAE PSNR, dB", fidelity(vae, pixels), len(true)))
            captions = [scene.caption for scene in scenes]
            drawn = draw_images(parts, vae, captions, (0,), sample, progress)
            rows += jury.rows(name, asked, drawn)
            rows.append(Row(name, "KID × 10³", jury.kid(drawn, true), len(true)))
            shown = [*range(len(asked.singles))[: GRID - GRID // 4], *range(len(asked.singles), len(true))[: GRID // 4]]
            grid([drawn[row] for row in shown], [captions[row] for row in shown]).save(folder / f"{name}.png")
        return tables.write(folder / "figures.parquet", [vars(row) for row in rows])

    return store.make(stages.base_model_figures(models, judge, sample, count), produce)


def grid(pictures: Sequence[Image.Image], prompts: Sequence[str], columns: int = 8) -> Image.Image:
    """Every picture twice as large, above its prompt in at most three lines."""
    side, line = 2 * pictures[0].width, 11
    font, height = ImageFont.load_default(9), side + 3 * line + 8
    sheet = Image.new("RGB", (columns * (side + 6), -(-len(pictures) // columns) * height), "white")
    pencil = ImageDraw.Draw(sheet)
    for number, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        left, top = number % columns * (side + 6) + 3, number // columns * height + 3
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left, top))
        for row, words in enumerate(textwrap.wrap(prompt, 28, max_lines=3, placeholder=" …")):
            pencil.text((left, top + side + 1 + row * line), words, fill="#333", font=font)
    return sheet


@dataclass(frozen=True)
class Asked:
    """Scenes that are asked for: of one thing in one colour, of two things, and of one thing in two colours."""

    singles: list[Scene]
    couples: list[Scene]
    dressed: list[Scene]


def tests(drawings: Sequence[Drawing], count: int) -> Asked:
    """`count` scenes of one thing in one named colour, half as many of two different things, and of one in two named colours."""
    drawn = sample_scenes(drawings, 12 * count, 0, purpose="base model validation")
    plain = [scene for scene in drawn if not scene.black_and_white and not scene.upside_down]
    singles, dressed = ([scene for scene in plain if _says_its_colours(scene, number)] for number in (1, 2))
    couples = [scene for scene in plain if len({thing.drawing.category for thing in scene.things}) == 2]
    return Asked(singles[:count], couples[: count // 2], dressed[: count // 2])


def _says_its_colours(scene: Scene, number: int) -> bool:
    """Whether it is of one thing whose `number` colours are told: what nobody was told, nobody can be asked for."""
    thing, *others = scene.things
    told = f"{' and '.join(thing.paint)} {thing.drawing.category}" in scene.caption
    return not others and len(thing.paint) == number and told


def _unseen(drawings: Sequence[Drawing], count: int) -> tuple[Asked, list[Image.Image]]:
    """Scenes of the drawings that no training saw, of one thing in one colour."""
    hidden = [replace(one, held_out=False) for one in drawings if one.held_out]
    singles = tests(hidden, count // 4).singles
    return Asked(singles, [], []), _drawn(singles, SIZE)


def _drawn(scenes: Sequence[Scene], size: int) -> list[Image.Image]:
    return [render_scene(scene, size) for scene in scenes]


class Jury:
    """A CLIP that says which of all categories and colours a picture shows."""

    def __init__(self, source: EncoderSource, drawings: Sequence[Drawing], runtime: Runtime) -> None:
        self.encoder = Encoder(source, runtime.device)
        self.categories = list(dict.fromkeys(one.category for one in drawings))
        phrases = [called((colour,), category) for category in self.categories for colour in COLOURS]
        shape = (len(self.categories), len(COLOURS), -1)
        self.phrases = self.encoder.texts(phrases).reshape(shape)

    def rows(self, model: str, asked: Asked, pictures: list[Image.Image]) -> list[Row]:
        """How often it names what the scenes say."""
        seen = self.encoder.images(pictures)
        ends = np.cumsum([len(asked.singles), len(asked.couples)])
        alone, both, dressed = np.split(seen, ends)
        verdicts = {
            "thing named": self.names(alone, asked.singles),
            "colour named": self.colours(alone, asked.singles),
            "both of two things": self.pairs(both, asked.couples),
            "both colours of one": self.places(dressed, asked.dressed),
        }
        return [Row(model, figure, float(found.mean()), len(found)) for figure, found in verdicts.items() if len(found)]

    def names(self, seen: Vectors, scenes: list[Scene]) -> Verdicts:
        """Whether the category is named among all, told the colour; (N,) bool."""
        colour = [list(COLOURS).index(scene.things[0].paint[0]) for scene in scenes]
        found = np.einsum("nd,cnd->nc", seen, self.phrases[:, colour]).argmax(1)
        return found == np.array([self.categories.index(scene.things[0].drawing.category) for scene in scenes])

    def colours(self, seen: Vectors, scenes: list[Scene]) -> Verdicts:
        """Whether the colour is named among all, told the category; (N,) bool."""
        category = [self.categories.index(scene.things[0].drawing.category) for scene in scenes]
        found = np.einsum("nd,nkd->nk", seen, self.phrases[category]).argmax(1)
        return found == np.array([list(COLOURS).index(scene.things[0].paint[0]) for scene in scenes])

    def pairs(self, seen: Vectors, scenes: list[Scene]) -> Verdicts:
        """Whether each of two things is named among all, told the other and the colours; (N,) bool."""
        found: list[bool] = []
        for vector, scene in zip(seen, scenes, strict=True):
            left, right = (partial(called, thing.paint) for thing in scene.things)
            wanted = [thing.drawing.category for thing in scene.things]
            texts = [f"{left(one)} and {right(wanted[1])}" for one in self.categories]
            texts += [f"{left(wanted[0])} and {right(one)}" for one in self.categories]
            named = (self.encoder.texts(texts) @ vector).reshape(2, -1).argmax(1)
            found.append([self.categories[number] for number in named] == wanted)
        return np.array(found)

    def places(self, seen: Vectors, scenes: list[Scene]) -> Verdicts:
        """Whether a thing's main and second colour are named among all in either place, told the category; (N,) bool."""
        paints = list(permutations(COLOURS, 2))

        @cache
        def told(category: str) -> Vectors:
            return self.encoder.texts([called(paint, category) for paint in paints])

        wanted = [scene.things[0] for scene in scenes]
        named = [
            paints[(told(one.drawing.category) @ vector).argmax()] for vector, one in zip(seen, wanted, strict=True)
        ]
        return np.array([one == thing.paint for one, thing in zip(named, wanted, strict=True)])

    def kid(self, drawn: list[Image.Image], true: list[Image.Image]) -> float:
        """KID x 10^3 in the judge's space."""
        return kid(self.encoder.images(drawn), self.encoder.images(true), len(true) // 2, SUBSETS)
