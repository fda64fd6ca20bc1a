"""DreamBooth's regularization, and the paper's ablation ("w/ gen"): images that the base model itself draws."""

from collections.abc import Sequence
from pathlib import Path

from customdiff_core import images, stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.config import RetrieveConfig, Runtime
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.sampling import draw_images, load_model


def generate_all(
    concepts: Sequence[Concept],
    profile: Profile,
    config: RetrieveConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> list[Artifact]:
    """Draw `config.count` images of each class prompt.

    Returns:
        `regularization` artifacts with the columns of retrieved ones.
    """

    def make(concept: Concept) -> Artifact:
        def produce(folder: Path) -> int:
            rows = _draw(concept.class_prompt, profile, config.count, store, runtime, progress)
            return tables.write(folder / "regularization.parquet", rows)

        return store.make(stages.retrieve(concept, None, profile, config, store), produce)

    return [make(concept) for concept in concepts]


def _draw(
    prompt: str, profile: Profile, count: int, store: Store, runtime: Runtime, progress: Progress
) -> list[tables.Row]:
    config = profile.evaluate.sample
    components, vae = load_model(profile, None, store, runtime, config.precision)
    drawn = draw_images(components, vae, [prompt], range(count), config, progress)
    rows: list[tables.Row] = []
    for number, image in enumerate(drawn):
        png = images.encode(image)
        rows.append(
            {
                "position": number,
                "cand_id": number,
                "url": "",
                "caption": prompt,
                "similarity": 1.0,  # its caption is the class prompt
                "width": image.width,
                "height": image.height,
                "source_sha256": images.digest(png),
                "image": png,
                "round": 0,
            }
        )
    return rows
