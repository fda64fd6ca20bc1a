"""Validation: what a base model can do, by one program for any two of them.

Every figure is of scenes that were never trained on, drawn from a random stream of their own: how well the VAE brings
pictures back, how often the judge names a thing and its colour in true and in generated pictures, how often both of two
things are there, and how far generated pictures are from true ones as a set (KID).
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
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
        count: scenes of one thing; half as many of two.
        store: where the result goes.
        runtime: device.
        progress: told while pictures are drawn.

    Returns:
        A `base_model_figures` artifact: figures.parquet (model, figure, value, n) and a grid of 64 prompts a model.
    """

    def produce(folder: Path) -> int:
        drawings = load_drawings(Settings().data / "world" / "drawings.csv")
        singles, couples = tests(drawings, count)
        jury = Jury(judge, drawings, runtime)
        true = _drawn(singles + couples, SIZE)
        rows = jury.rows("true scenes", singles, couples, true)
        rows += jury.rows("true scenes, held-out drawings", *_unseen(drawings, count))
        for name, source in models.items():
            device = resolve_device(runtime.device)
            parts, vae = load_components(source).to(device), load_vae(source).to(device)
            pixels = np.stack([np.asarray(picture) for picture in _drawn(singles + couples, vae.config.sample_size)])
            rows.append(Row(name, "VAE PSNR, dB", fidelity(vae, pixels), len(true)))
            captions = [scene.caption for scene in singles + couples]
            drawn = draw_images(parts, vae, captions, (0,), sample, progress)
            rows += jury.rows(name, singles, couples, drawn)
            rows.append(Row(name, "KID × 10³", jury.kid(drawn, true), len(true)))
            shown = [*range(len(singles))[: GRID - GRID // 4], *range(len(singles), len(true))[: GRID // 4]]
            grid([drawn[row] for row in shown], [captions[row] for row in shown]).save(folder / f"{name}.png")
        return tables.write(folder / "figures.parquet", [vars(row) for row in rows])

    return store.make(stages.base_model_figures(models, judge, sample, count), produce)


def grid(pictures: Sequence[Image.Image], prompts: Sequence[str], columns: int = 8) -> Image.Image:
    """Every picture twice as large, above its prompt in two lines."""
    side, line = 2 * pictures[0].width, 11
    font = ImageFont.load_default(9)
    sheet = Image.new("RGB", (columns * (side + 6), -(-len(pictures) // columns) * (side + 2 * line + 8)), "white")
    pencil = ImageDraw.Draw(sheet)
    for number, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        left, top = number % columns * (side + 6) + 3, number // columns * (side + 2 * line + 8) + 3
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left, top))
        for row, words in enumerate(textwrap.wrap(prompt, 28)[:2]):
            pencil.text((left, top + side + 1 + row * line), words, fill="#333", font=font)
    return sheet


def tests(drawings: Sequence[Drawing], count: int) -> tuple[list[Scene], list[Scene]]:
    """`count` scenes of one thing in one named colour, and half as many of two different things."""
    drawn = sample_scenes(drawings, 12 * count, 0, purpose="base model validation")
    plain = [scene for scene in drawn if not scene.black_and_white and not scene.upside_down]
    singles = [scene for scene in plain if len(scene.things) == 1 and _says_its_colour(scene)]
    couples = [scene for scene in plain if len({thing.drawing.category for thing in scene.things}) == 2]
    return singles[:count], couples[: count // 2]


def _says_its_colour(scene: Scene) -> bool:
    """Whether the caption has the thing's one colour: what nobody was told, nobody can be asked for."""
    thing = scene.things[0]
    return len(thing.paint) == 1 and f"{thing.paint[0]} {thing.drawing.category}" in scene.caption


def _unseen(drawings: Sequence[Drawing], count: int) -> tuple[list[Scene], list[Scene], list[Image.Image]]:
    """Scenes of the drawings that no training saw; none of two things."""
    hidden = [replace(one, held_out=False) for one in drawings if one.held_out]
    singles, _ = tests(hidden, count // 4)
    return singles, [], _drawn(singles, SIZE)


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

    def rows(self, model: str, singles: list[Scene], couples: list[Scene], pictures: list[Image.Image]) -> list[Row]:
        """How often it names what the scenes say."""
        seen = self.encoder.images(pictures)
        alone, both = seen[: len(singles)], seen[len(singles) :]
        named, coloured = self.names(alone, singles), self.colours(alone, singles)
        rows = [
            Row(model, "thing named", float(named.mean()), len(singles)),
            Row(model, "colour named", float(coloured.mean()), len(singles)),
        ]
        if couples:
            rows.append(Row(model, "both of two things", float(self.pairs(both, couples).mean()), len(couples)))
        return rows

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

    def kid(self, drawn: list[Image.Image], true: list[Image.Image]) -> float:
        """KID x 10^3 in the judge's space."""
        return kid(self.encoder.images(drawn), self.encoder.images(true), len(true) // 2, SUBSETS)
