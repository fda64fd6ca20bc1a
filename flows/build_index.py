"""Flows `build-index` and `build-own-index`: what captions are searched in.

prefect deployment run build-own-index/folder --param source=/data/links.parquet --param out=/data/index --watch
"""

from pathlib import Path

from prefect import flow

import tasks.retrieve
from customdiff_core.artifacts import Artifact
from customdiff_core.config import BuildConfig, IndexConfig, Runtime
from customdiff_core.profiles import Profile
from flows.options import ModelOptions
from tasks import publish


def indexed(profile: Profile, config: IndexConfig, runtime: Runtime) -> Artifact | None:
    """The embedded corpus, shown in the UI; None for a profile with an index or a backend of its own."""
    if profile.corpus.source != "embedded":
        return None
    index = tasks.retrieve.build_index(profile, config, runtime)
    publish.indexed(index)
    return index


@flow(name="build-index", validate_parameters=True)
def build_index(model: ModelOptions = ModelOptions()) -> Artifact | None:
    """Render captioned scenes, embed them with the retrieval CLIP and index them for FAISS: what every run searches."""
    return indexed(model.resolve(search=True), IndexConfig(), model.runtime)


@flow(name="build-own-index", validate_parameters=True)
def build_own_index(
    source: Path, out: Path, build: BuildConfig = BuildConfig(kind="urls"), model: ModelOptions = ModelOptions()
) -> Path:
    """Build an index folder of your own captioned images; a run that was broken off is gone on with by running it again.

    Args:
        source: a Parquet file (or a folder of them) of links and captions, a folder of images and captions, or embeddings.
        out: the new folder; give it as model.index when retrieving.
        build: what the source is, and how large the index may be.
        model: the profile, whose retrieval encoder embeds.
    """
    built = tasks.retrieve.build_folder(source, out, build, model.named(), model.runtime)
    publish.built(built)
    return built
