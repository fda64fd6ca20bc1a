"""What a perfect method would score: a concept's true drawings, set into the scenes that its prompts tell of.

python -m deployments.ceiling cat dog         # by default every concept that is made of drawings

The judge and the colours see them as they see generated pictures: 20 prompts x 8, by the same functions; once as they are and once
as the VAE brings them back, through which all is drawn. Beside them stand the base model, between which and them is about
the room that a method has; the base model with the rare word that V* starts from, which says nothing: what it costs, a
method pays before its first step; and the base model told in words what the concept's colours are: what it cannot draw
when told, a few new keys and values will hardly teach it.
"""

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from customdiff_core import concepts, images, profiles, tables
from customdiff_core.artifacts import Store
from customdiff_core.concepts import Concept
from customdiff_core.config import Runtime
from customdiff_core.errors import WorldError
from customdiff_core.evaluation.alignment import image_alignment, text_alignment
from customdiff_core.evaluation.identity import RATES, identity
from customdiff_core.evaluation.judge import Judge
from customdiff_core.finetuning.components import load_vae
from customdiff_core.latents import encode_latents
from customdiff_core.progress import silent
from customdiff_core.sampling import decode_latents, generate
from customdiff_core.seeding import numpy_rng
from customdiff_core.settings import Settings
from customdiff_core.world import settings
from customdiff_core.world.colours import COLOURS, name_of
from customdiff_core.world.drawings import Drawing, load_drawings
from customdiff_core.world.scenes import PAIR_SCALES, SIDES, SIZES, Thing, picture_of, put, with_article

PICTURES, SIZE, SHIFT = 8, 64, 0.17
COMPANION = rf"an? (?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<category>[a-z ]+?)"
PAIRS = (
    re.compile(rf"an? \{{\}} (?:and|next to) {COMPANION}(?: (?:on|in|at) .*)?"),
    re.compile(rf"{COMPANION} and an? \{{\}}"),
)
BEHIND = re.compile(r"on an? (?P<setting>[a-z ]+?) background")

FIGURES = ("taken for this one by the judge", "by its colours", "image alignment, held out", "text alignment")


def main(names: list[str]) -> None:
    """Print five lines a concept."""
    console, store = Console(width=160, highlight=False), Store()
    console.print(f"| | | {' | '.join(FIGURES)} |", markup=False)
    console.print("|---" * (2 + len(FIGURES)) + "|")
    for name in names or list(makers().SUBJECTS):
        concept = concepts.load(name)
        drawn = true(concept)
        subjects = {
            f'base model, "{words}"': base(concept, words, store)
            for words in (concept.category, f"{concept.initializer_token} {concept.category}", in_words(concept))
        } | {
            "true drawings, through the VAE": through_vae(drawn),
            "true drawings": drawn,
        }
        for subject, pictures in subjects.items():
            means = " | ".join(f"{value:.3f}" for value in measure(concept, pictures, store).values())
            console.print(f"| {name} | {subject} | {means} |", markup=False)


def in_words(concept: Concept) -> str:
    """The concept as captions would call it, by its main and second paint: "teal and pink cat"."""
    paints = (paint.removeprefix("#") for paint in makers().SUBJECTS[concept.name].paints)
    red_green_blue = (bytes.fromhex(paint) for paint in paints)
    return f"{' and '.join(name_of((one[0], one[1], one[2])) for one in red_green_blue)} {concept.category}"


def base(concept: Concept, words: str, store: Store) -> list[bytes]:
    """The base model's pictures of the prompts with these words for the concept, as `evaluate` draws them: encoded."""
    profile = profiles.get("openmoji")
    prompts = tuple(
        re.sub(r"\ban? \{\}", with_article(words), prompt).replace("{}", words) for prompt in concept.prompts
    )
    samples = generate(prompts, profile.evaluate.seeds, None, profile, profile.evaluate.sample, store=store)
    return tables.read(store, samples, "samples", ["image"])["image"].tolist()


def true(concept: Concept, count: int = PICTURES) -> list[bytes]:
    """True drawings in the scenes of the prompts, `count` of each: encoded, prompt by prompt."""
    return [images.encode(draw(concept, prompt, number)) for prompt in concept.prompts for number in range(count)]


def through_vae(pictures: Sequence[bytes]) -> list[bytes]:
    """Pictures of the base model's size, encoded and decoded by its VAE."""
    model = profiles.get("openmoji").model
    vae = load_vae(model)
    mean, _ = encode_latents([images.open_trusted(one) for one in pictures], model, Runtime(device="cpu"), silent)
    return [images.encode(one) for one in decode_latents(vae, torch.from_numpy(mean) * vae.config.scaling_factor)]


def measure(concept: Concept, pictures: list[bytes], store: Store) -> Mapping[str, float]:
    """Means of FIGURES over equally many pictures of each of the concept's prompts."""
    judge = Judge(profiles.get("openmoji"), store, Runtime())
    seen, shares = judge.images(pictures), identity(concept, pictures, judge)
    words = judge.texts([concept.with_category(prompt) for prompt in concept.prompts])
    held_out = judge.images([concept.read(one, "held_out") for one in concept.held_out])
    scores = (
        *(shares[rate] for rate in RATES),
        image_alignment(seen, held_out),
        text_alignment(seen, words.repeat(len(pictures) // len(words), axis=0)),
    )
    return {name: float(values.mean()) for name, values in zip(FIGURES, scores, strict=True)}


def draw(concept: Concept, prompt: str, number: int) -> Image.Image:
    """Draw a prompt's scene around a true drawing of the concept; `number` chooses what the prompt leaves open.

    Raises:
        WorldError: for a prompt that tells of nothing the world can draw.
    """
    rng = numpy_rng("ceiling", concept.name, prompt, number)
    pair = next((found for one in PAIRS if (found := one.fullmatch(prompt))), None)
    canvas = np.asarray(settings.draw(_setting(prompt, rng), SIZE, rng)).astype(np.float32) / 255
    x, y = 0.5, 0.5
    scales = next((one for one, words in SIZES if any(word and word in prompt for word in words)), SIZES[1][0])
    for words, (right, down) in SIDES.items():
        if words in prompt:
            x, y, scales = x + SHIFT * right, y + SHIFT * down, (0.6, 0.66)
    if pair:
        x, scales = (0.26, PAIR_SCALES) if prompt.index("{}") < pair.start("category") else (0.74, PAIR_SCALES)
        put(canvas, _companion(pair, 1 - x, rng), 1 - x, 0.5)
    side = round(float(rng.uniform(*scales)) * SIZE)
    shown = _true(concept, prompt, rng).convert("RGBa").resize((side, side), Image.Resampling.BOX)
    put(canvas, shown if rng.random() < 0.5 else shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT), x, y)
    return Image.fromarray((canvas * 255 + 0.5).astype(np.uint8))


def _setting(prompt: str, rng: np.random.Generator) -> str:
    """The prompt's background or place; any colour where it says none."""
    if found := BEHIND.search(prompt):
        setting = found["setting"]
        if setting not in settings.SETTINGS:
            raise WorldError(f"prompt {prompt!r}: found the background {setting!r}, need one of world/settings.py")
        return setting
    return next((one for one in settings.PLACES if one in prompt), list(COLOURS)[int(rng.integers(len(COLOURS)))])


def _companion(pair: re.Match[str], x: float, rng: np.random.Generator) -> Image.Image:
    """The other thing, in its colour or its own."""
    named = [one for one in drawings() if one.category == pair["category"]]
    if not named:
        raise WorldError(f"prompt {pair.string!r}: found no drawing of {pair['category']!r}, need one of drawings.csv")
    paint = (pair["colour"],) if pair["colour"] else ()
    thing = Thing(named[int(rng.integers(len(named)))], paint, float(rng.uniform(*PAIR_SCALES)), x, 0.5)
    return picture_of(thing, False, SIZE, rng)


def _true(concept: Concept, prompt: str, rng: np.random.Generator) -> Image.Image:
    """One of the concept's own drawings, RGBA: the one that the prompt describes ("a crying {}"), or any."""
    maker = makers()
    subject: Any = maker.SUBJECTS[concept.name]
    codes = sorted({view.code for view in (*subject.images, *subject.held_out)})
    described = [one.code for one in drawings() if one.code in codes and one.words != "{}" and one.words in prompt]
    chosen = described or codes
    return maker.drawing(chosen[int(rng.integers(len(chosen)))], 4 * SIZE, subject)


@cache
def drawings() -> list[Drawing]:
    """What scenes are drawn from."""
    return [one for one in load_drawings(Settings().data / "world" / "drawings.csv") if not one.held_out]


@cache
def makers() -> ModuleType:
    """`data/concepts/make_concepts.py`, which knows what each concept is drawn from: a script, so loaded by path."""
    spec = importlib.util.spec_from_file_location("make_concepts", Settings().data / "concepts" / "make_concepts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(sys.argv[1:])
