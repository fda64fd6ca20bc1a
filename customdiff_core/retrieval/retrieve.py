"""Retrieve: the images whose captions are nearest to the class prompt (arXiv:2212.04488, section 3.2).

Search, drop what the index itself speaks against, fetch in rounds until there are enough, and take the best-ranked:
by similarity and never by arrival, so that the same index and the same links that answer give the same images.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from customdiff_core import stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.config import IndexConfig, RetrieveConfig, Runtime
from customdiff_core.errors import ConfigError, RetrievalError, TooFewImagesError
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.retrieval.candidates import Gathered, Session, gather
from customdiff_core.retrieval.encoder import Encoder
from customdiff_core.retrieval.fetch import Shelf, url_digest
from customdiff_core.retrieval.index import build
from customdiff_core.retrieval.known import forgotten
from customdiff_core.retrieval.select import take
from customdiff_core.settings import Settings

COLUMNS = ("cand_id", "prompt", "rank", "similarity", "index_similarity", "source", "item_id", "url", "image_path", "caption",
           "dup_group", "drop_reason")  # fmt: skip


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
        index: a built `index`; None takes the profile's own folder or backend.
        profile: names the source and the retrieval encoder.
        config: how many, and how near.
        store: where the result goes.
        runtime: device, and connections at a time.
        progress: told while images are read or fetched.

    Returns:
        A `regularization` artifact: regularization.parquet (the images), candidates.parquet (every hit, and why it was
        dropped) and attempts.parquet (every try to get one).

    Raises:
        ConfigError: if images shall be larger than they are kept.
        RetrievalError: if the source cannot be searched; TooFewImagesError if there are not that many.
    """
    (made,) = retrieve_all([concept], index, profile, config, store=store, runtime=runtime, progress=progress)
    return made


def retrieve_all(
    concepts: Sequence[Concept],
    index: Artifact | None,
    profile: Profile,
    config: RetrieveConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> list[Artifact]:
    """Take `config.count` images for each concept in one pass: one encoder, one open index, no picture fetched twice.

    Each artifact is the one that `retrieve` makes for its concept alone. Arguments and errors are those of `retrieve`.
    """
    if config.regularization == "none":
        raise ConfigError(
            "regularization: found none asked for, need retrieved or generated to make a set; train without one instead"
        )
    if config.regularization == "generated":
        from customdiff_core.retrieval.alternatives import generate_all

        return generate_all(concepts, profile, config, store=store, runtime=runtime, progress=progress)
    if config.min_side is not None and config.min_side > profile.augment.resolution:
        raise ConfigError(
            f"retrieve.min_side: found {config.min_side}, need at most {profile.augment.resolution}, to which profile "
            f"{profile.name} scales images down; lower it"
        )
    session = Session(index, profile, config, store, runtime, progress)
    made = [_retrieve(concept, index, profile, config, store, session) for concept in concepts]
    for shelf in session.shelves:
        shutil.rmtree(shelf.folder, ignore_errors=True)
    return made


def _retrieve(
    concept: Concept, index: Artifact | None, profile: Profile, config: RetrieveConfig, store: Store, session: Session
) -> Artifact:
    recipe = stages.retrieve(concept, index, profile, config, store)

    def produce(folder: Path) -> int:
        shelf = Shelf(store.scratch(recipe.kind, recipe.key))
        try:
            gathered = gather(concept.class_prompt, session, shelf)
            session.shelves.append(shelf)
            try:
                kept, candidates = take(gathered.table, gathered.usable, config.count, concept.class_prompt)
            except TooFewImagesError as error:
                raise TooFewImagesError(str(error), gathered.account()) from error
            rows = _rows(gathered, kept.to_dict("records"), shelf)
        except FileNotFoundError as error:
            if shelf.folder.exists():
                raise
            raise _removed_meanwhile(concept.class_prompt) from error
        tables.write(folder / "candidates.parquet", candidates.filter(list(COLUMNS)))
        tables.write(folder / "attempts.parquet", gathered.account().attempts)
        return tables.write(folder / "regularization.parquet", rows)

    made = store.make(recipe, produce, volatile=("attempts.parquet",))
    # A removal that was asked for before the set was there did not see it: the set must see the removal.
    urls = tables.read(store, made, "regularization", ["url"])["url"]
    if not forgotten(store).isdisjoint(url_digest(url) for url in urls if url):
        store.remove(made)
        store.drop_scratch(recipe.kind, recipe.key)
        raise _removed_meanwhile(concept.class_prompt)
    return made


def _removed_meanwhile(prompt: str) -> RetrievalError:
    return RetrievalError(
        f"regularization images for {prompt!r}: found that a picture's removal was asked for meanwhile, need a set without it; "
        "run this again"
    )


def _rows(gathered: Gathered, kept: Sequence[dict[str, object]], shelf: Shelf) -> list[tables.Row]:
    rows: list[tables.Row] = []
    for position, hit in enumerate(kept):
        link = gathered.links[int(str(hit["item_id"]))]
        picture = shelf.picture(link)
        rows.append(
            {
                "position": position,
                "cand_id": hit["cand_id"],
                "url": hit["url"],
                "caption": hit["caption"],
                "similarity": hit["similarity"],
                "width": picture.width,
                "height": picture.height,
                "source_sha256": picture.sha256,
                "image": picture.png,
                "round": shelf.notes[link.digest]["round"],
            }
        )
    return rows
