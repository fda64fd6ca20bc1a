"""Flow `retrieve`: the regularization images of a concept."""

from prefect import flow

import tasks.retrieve
from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import IndexConfig, RetrieveConfig, Runtime
from customdiff_core.errors import TooFewImagesError
from customdiff_core.profiles import Profile
from flows.build_index import indexed
from flows.options import ConceptName, ModelOptions, RetrieveOptions
from tasks import publish


def retrieved(concept: Concept, profile: Profile, config: RetrieveConfig, runtime: Runtime) -> Artifact | None:
    """The regularization images, shown in the UI, also how far it came when there are too few; None for none."""
    if config.regularization == "none":
        return None
    index = indexed(profile, IndexConfig(), runtime) if config.regularization == "retrieved" else None
    try:
        regularization = tasks.retrieve.retrieve(concept, index, profile, config, runtime)
    except TooFewImagesError as error:
        publish.too_few(concept, error)
        raise
    publish.retrieved(concept, regularization)
    return regularization


@flow(name="retrieve", flow_run_name="retrieve-{concept}")
def retrieve(
    concept: ConceptName = "cat", retrieve: RetrieveOptions = RetrieveOptions(), model: ModelOptions = ModelOptions()
) -> Artifact | None:
    """Take the images whose captions are nearest to the concept's class prompt; builds the index first if need be."""
    profile = model.named()
    return retrieved(concepts.load(concept), profile, retrieve.resolve(profile), model.runtime)
