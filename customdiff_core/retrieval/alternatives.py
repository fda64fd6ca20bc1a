"""The paper's ablation: regularization images drawn by the base model itself ("w/ gen"), or none at all ("w/o reg")."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from customdiff_core import images, stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.config import RetrieveConfig, Runtime
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.sampling import draw_images, load_model

# What the table of images holds, so that an empty one has the same columns.
COLUMNS = {
    "position": "int64",
    "cand_id": "int64",
    "url": "object",
    "caption": "object",
    "similarity": "float64",
    "width": "int64",
    "height": "int64",
    "source_sha256": "object",
    "image": "object",
    "round": "int64",
}


def generate_all(
    concepts: Sequence[Concept],
    profile: Profile,
    config: RetrieveConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> list[Artifact]:
    """Draw `config.count` images of each class prompt, or make an empty set when the config says `none`.

    Returns:
        `regularization` artifacts with the columns of retrieved ones.
    """

    def make(concept: Concept) -> Artifact:
        def produce(folder: Path) -> int:
            drawn = config.regularization == "generated"
            rows = _draw(concept.class_prompt, profile, config.count, store, runtime, progress) if drawn else []
            table = pd.DataFrame(rows).reindex(columns=pd.Index(COLUMNS)).astype(COLUMNS)
            return tables.write(folder / "regularization.parquet", table)

        return store.make(stages.retrieve(concept, None, profile, config, store), produce)

    return [make(concept) for concept in concepts]


def _draw(
    prompt: str, profile: Profile, count: int, store: Store, runtime: Runtime, progress: Progress
) -> list[tables.Row]:
    components, vae = load_model(profile, None, store, runtime)
    drawn = draw_images(components, vae, [prompt], range(count), profile.evaluate.sample, progress)
    rows: list[tables.Row] = []
    for number, image in enumerate(drawn):
        png = images.encode(image)
        size = {"width": image.width, "height": image.height}
        words = {"url": "", "caption": prompt, "similarity": 1.0}  # its caption is the class prompt
        rows.append(
            {
                "position": number,
                "cand_id": number,
                "source_sha256": images.digest(png),
                "image": png,
                "round": 0,
                **words,
                **size,
            }
        )
    return rows
