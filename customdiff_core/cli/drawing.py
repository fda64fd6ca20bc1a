"""`customdiff generate`: what a delta knows in the prompts' places, and the pictures as files."""

import re
from collections.abc import Sequence
from pathlib import Path

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import texts
from customdiff_core.config import Runtime, SampleConfig
from customdiff_core.lineage import lineage_of
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress
from customdiff_core.sampling import generate

NAME = re.compile(r"(\d{3,})--?\d+\.png")


def texts_for(delta: Artifact, prompts: Sequence[str], store: Store) -> tuple[str, ...]:
    """Fill {} with the first concept that a delta was taught, and {0}, {1}, ... with each.

    Raises:
        ConfigError: for a number beyond.
    """
    lineage = lineage_of(delta, store)
    return texts(prompts, lineage, lineage.concepts[0].noun if lineage.concepts else "")


def draw(
    texts: tuple[str, ...],
    seeds: tuple[int, ...],
    delta: Artifact,
    profile: Profile,
    config: SampleConfig,
    store: Store,
    runtime: Runtime,
    progress: Progress,
    out: Path,
) -> list[Path]:
    """Draw, and write each picture as <prompt number>-<seed>.png with its recipe in it.

    Where other pictures have these names already, prompts are numbered on from theirs.
    """
    samples = generate(texts, seeds, delta, profile, config, store=store, runtime=runtime, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    rows = tables.read(store, samples, "samples").to_dict("records")
    drawn = [(int(row["prompt_id"]), int(row["seed"]), row["image"]) for row in rows]
    if any(_is_another(_path(out, prompt, seed), image) for prompt, seed, image in drawn):
        first = 1 + max(int(found[1]) for path in out.iterdir() if (found := NAME.fullmatch(path.name)))
        drawn = [(first + prompt, seed, image) for prompt, seed, image in drawn]
    for prompt, seed, image in drawn:
        _path(out, prompt, seed).write_bytes(image)
    return [_path(out, prompt, seed) for prompt, seed, _ in drawn]


def _path(out: Path, prompt: int, seed: int) -> Path:
    return out / f"{prompt:03d}-{seed}.png"


def _is_another(path: Path, image: bytes) -> bool:
    return path.exists() and path.read_bytes() != image
