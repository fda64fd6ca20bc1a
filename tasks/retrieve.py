"""Tasks of the retrieve stage: the index, once a machine, and the regularization images."""

from contextlib import nullcontext
from pathlib import Path

from prefect import task

from customdiff_core import stages
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import BuildConfig, IndexConfig, RetrieveConfig, Runtime
from customdiff_core.profiles import Profile
from tasks.caching import retry_unexpected, stage
from tasks.publish import named, progress
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
    """Take the regularization images nearest to the class prompt, or let the base model draw them."""
    from customdiff_core.retrieval.retrieve import retrieve as run

    slot = gpu_slot() if config.regularization == "generated" else nullcontext()
    with slot, progress(f"{named(concept)}-retrieve", "Regularization images") as tell:
        return run(concept, index, profile, config, store=store(), runtime=runtime, progress=tell)


@task(name="build-own-index", retries=1, retry_condition_fn=retry_unexpected)
def build_folder(source: Path, out: Path, config: BuildConfig, profile: Profile, runtime: Runtime) -> Path:
    """Build an index folder of somebody's own images; it resumes by itself, so that no cache is asked."""
    from customdiff_core.retrieval.building import build_folder as run

    with gpu_slot(), progress("build-own-index", f"Index {out.name}") as tell:
        return run(source, out, config, profile.retrieval_encoder, runtime, tell)
