"""Task of the augment stage."""

from prefect import task

from customdiff_core import stages
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import AugmentConfig, Runtime
from customdiff_core.profiles import Profile
from tasks.caching import stage
from tasks.publish import named, progress
from tasks.slots import gpu_slot
from tasks.stores import store


@task(name="augment", **stage(stages.augment))
def augment(
    concept: Concept, regularization: Artifact | None, profile: Profile, config: AugmentConfig, runtime: Runtime
) -> Artifact:
    """Make the training set, while holding the GPU slot for the VAE."""
    from customdiff_core.augmentation import augment as run

    with gpu_slot(), progress(f"{named(concept)}-augment", "Images encoded by the VAE") as tell:
        return run(concept, regularization, profile, config, store=store(), runtime=runtime, progress=tell)
