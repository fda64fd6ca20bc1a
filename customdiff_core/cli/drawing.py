"""`customdiff generate`: what a delta knows in the prompts' places, and the pictures as files."""

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
    """Draw, and write each picture as <prompt number>-<seed>.png with its recipe in it."""
    samples = generate(texts, seeds, delta, profile, config, store=store, runtime=runtime, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for row in tables.read(store, samples, "samples").to_dict("records"):
        path = out / f"{int(row['prompt_id']):03d}-{int(row['seed'])}.png"
        path.write_bytes(row["image"])
        files.append(path)
    return files
