"""Regularization images that the base model draws itself for the class prompt: DreamBooth's, and the paper's ablation."""

from pathlib import Path

from customdiff_core import images, stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.config import RetrieveConfig, Runtime
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.sampling import generate


def draw_regularization(
    concept: Concept,
    profile: Profile,
    config: RetrieveConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Artifact:
    """Draw `config.count` images of the class prompt with the base model, one a seed.

    Returns:
        A `regularization` artifact: regularization.parquet, as `retrieve` writes it; the caption is the class prompt.
    """

    def produce(folder: Path) -> int:
        sample = profile.evaluate.sample
        seeds = tuple(range(config.count))
        drawn = generate(
            (concept.class_prompt,), seeds, None, profile, sample, store=store, runtime=runtime, progress=progress
        )
        table = tables.read(store, drawn, "samples", ["image"])
        rows: list[tables.Row] = []
        for position, data in enumerate(table["image"]):
            image = images.open_trusted(data)
            rows.append(
                {
                    "position": position,
                    "cand_id": position,
                    "url": "",
                    "caption": concept.class_prompt,
                    "similarity": 1.0,
                    "width": image.width,
                    "height": image.height,
                    "source_sha256": images.digest(data),
                    "image": data,
                    "round": 0,
                }
            )
        return tables.write(folder / "regularization.parquet", rows)

    return store.make(stages.draw_regularization(concept, profile, config), produce)
