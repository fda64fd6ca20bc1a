"""Retrieve: the images whose captions are nearest to the class prompt (arXiv:2212.04488, section 3.2)."""

from pathlib import Path

import pandas as pd

from customdiff_core import images, stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.config import IndexConfig, RetrieveConfig, Runtime
from customdiff_core.errors import RetrievalError
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.retrieval.encoder import Encoder
from customdiff_core.retrieval.index import Index, build
from customdiff_core.retrieval.select import mark_dissimilar, mark_duplicates, take
from customdiff_core.settings import Settings


def build_index(
    profile: Profile,
    config: IndexConfig = IndexConfig(),
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Artifact:
    """Render, embed and index the embedded world's corpus; once a machine.

    Returns:
        An `index` artifact: a clip-retrieval folder.
    """

    def produce(folder: Path) -> int:
        encoder = Encoder(profile.retrieval_encoder, runtime.device)
        drawings = Settings().data / "world" / "drawings.csv"
        return build(folder, drawings, profile.augment.resolution, config, encoder, progress)

    return store.make(stages.build_index(profile, config), produce)


def retrieve(
    concept: Concept,
    index: Artifact | None,
    profile: Profile,
    config: RetrieveConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Artifact:
    """Take exactly `config.count` regularization images for the concept's class prompt.

    Args:
        concept: its class prompt is the query.
        index: a built `index`; None takes the profile's own folder.
        profile: names the retrieval encoder.
        config: how many, and how near.
        store: where the result goes.
        runtime: device.
        progress: told while images are read.

    Returns:
        A `regularization` artifact: regularization.parquet (the images) and candidates.parquet (every hit, and why it
        was dropped).

    Raises:
        RetrievalError: if there are not that many.
    """
    folder = stages.index_folder(index, profile, store)

    def produce(result: Path) -> int:
        source = Index(folder)
        if config.count > len(source):
            raise RetrievalError(
                f"regularization images: found an index of {len(source)}, need {config.count}; "
                "ask for fewer (retrieve.count) or build a larger index"
            )
        candidates, data = _candidates(concept.class_prompt, source, profile, config, runtime, progress)
        kept = take(candidates, config.count, concept.class_prompt)
        tables.write(result / "candidates.parquet", candidates)
        return tables.write(result / "regularization.parquet", _rows(kept, data))

    return store.make(stages.retrieve(concept, index, profile, config, store), produce)


def _candidates(
    prompt: str, source: Index, profile: Profile, config: RetrieveConfig, runtime: Runtime, progress: Progress
) -> tuple[pd.DataFrame, dict[int, bytes]]:
    """Search, read and mark: the candidates table, and the images' bytes by candidate."""
    vector = Encoder(profile.retrieval_encoder, runtime.device).texts([prompt])
    hits = source.search(vector, max(config.candidates, config.count))
    data: dict[int, bytes] = {}
    for rank, path in enumerate(hits["image_path"]):
        data[rank] = source.read_image(str(path))
        progress(rank + 1, len(hits), "images read")
    table = pd.DataFrame(
        {
            "cand_id": range(len(hits)),
            "prompt": prompt,
            "rank": range(len(hits)),
            "similarity": hits["similarity"],
            "source": "local",
            "item_id": hits["item_id"],
            "url": "",
            "caption": hits["caption"],
            "drop_reason": "",
        }
    )
    marked = mark_dissimilar(table, config.min_similarity)
    return mark_duplicates(marked, [images.digest(data[rank]) for rank in range(len(hits))]), data


def _rows(kept: pd.DataFrame, data: dict[int, bytes]) -> list[tables.Row]:
    rows: list[tables.Row] = []
    for position, hit in enumerate(kept.to_dict("records")):
        raw = data[int(hit["cand_id"])]
        image = images.decode(raw, f"index item {hit['item_id']}")
        rows.append(
            {
                "position": position,
                "cand_id": hit["cand_id"],
                "url": hit["url"],
                "caption": hit["caption"],
                "similarity": hit["similarity"],
                "width": image.width,
                "height": image.height,
                "source_sha256": images.digest(raw),
                "image": images.encode(image),
                "round": 0,
            }
        )
    return rows
