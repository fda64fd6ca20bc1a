"""Flow `build-index`: the retrieval corpus of the embedded world."""

from prefect import flow

import tasks.retrieve
from customdiff_core.artifacts import Artifact
from customdiff_core.config import IndexConfig, Runtime
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
def build_index(scenes: int = 10_000, model: ModelOptions = ModelOptions()) -> Artifact | None:
    """Render captioned scenes, embed them with the retrieval CLIP and index them for FAISS.

    Args:
        scenes: how many; at least 8000 give every concept its 200 regularization images.
        model: the profile.
    """
    return indexed(model.resolve(), IndexConfig(scenes=scenes), model.runtime)
