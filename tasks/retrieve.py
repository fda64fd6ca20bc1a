"""Tasks of the retrieve stage: the index, once a machine, and the regularization images."""

from prefect import task

from customdiff_core import stages
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import IndexConfig, RetrieveConfig, Runtime
from customdiff_core.profiles import Profile
from tasks.caching import stage
from tasks.publish import progress
from tasks.slots import gpu_slot
from tasks.stores import store


@task(name="build-index", **stage(stages.build_index))
def build_index(profile: Profile, config: IndexConfig, runtime: Runtime) -> Artifact:
    """Render, embed and index the embedded corpus."""
    from customdiff_core.retrieval.retrieve import build_index as run

    with gpu_slot(), progress("build-index", "Scenes rendered and embedded") as tell:
        return run(profile, config, store=store(), runtime=runtime, progress=tell)


@task(name="retrieve", **stage(stages.retrieve))
def retrieve(
    concept: Concept, index: Artifact | None, profile: Profile, config: RetrieveConfig, runtime: Runtime
) -> Artifact:
    """Take the regularization images nearest to the class prompt."""
    from customdiff_core.retrieval.retrieve import retrieve as run

    with progress(f"{concept.name}-retrieve", "Regularization images read") as tell:
        return run(concept, index, profile, config, store=store(), runtime=runtime, progress=tell)


@task(name="draw-regularization", **stage(stages.draw_regularization))
def draw_regularization(concept: Concept, profile: Profile, config: RetrieveConfig, runtime: Runtime) -> Artifact:
    """Let the base model draw the regularization images, while holding the GPU slot."""
    from customdiff_core.retrieval.generated import draw_regularization as run

    with gpu_slot(), progress(f"{concept.name}-regularization", "Regularization images drawn") as tell:
        return run(concept, profile, config, store=store(), runtime=runtime, progress=tell)
