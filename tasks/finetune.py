"""Task of the finetune stage."""

from prefect import task

from customdiff_core import stages
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import FinetuneConfig, Runtime
from customdiff_core.profiles import Profile
from tasks.caching import stage
from tasks.publish import named, progress
from tasks.slots import gpu_slot
from tasks.stores import store


@task(name="finetune", **stage(stages.finetune))
def finetune(
    concepts: tuple[Concept, ...],
    training_sets: tuple[Artifact, ...],
    profile: Profile,
    config: FinetuneConfig,
    runtime: Runtime,
    parent: Artifact | None = None,
) -> Artifact:
    """Train what the method trains, while holding the GPU slot."""
    from customdiff_core.finetuning.finetune import finetune as run

    with gpu_slot(), progress(f"{named(*concepts)}-finetune", "Training steps") as tell:
        return run(
            concepts,
            training_sets,
            profile,
            config,
            parent=parent,
            store=store(),
            runtime=runtime,
            progress=tell,
        )
