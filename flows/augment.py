"""Flow `augment`: a concept's training set."""

from prefect import flow

import tasks.augment
from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import AugmentConfig, Runtime
from customdiff_core.finetuning import methods
from customdiff_core.profiles import Profile
from flows.inputs import regularization_of
from flows.options import AugmentOptions, ConceptName, MethodName, ModelOptions
from tasks import publish


def augmented(
    concept: Concept, regularization: Artifact | None, profile: Profile, config: AugmentConfig, runtime: Runtime
) -> Artifact:
    """The training set, shown in the UI."""
    training_set = tasks.augment.augment(concept, regularization, profile, config, runtime)
    publish.augmented(concept, training_set)
    return training_set


@flow(name="augment", flow_run_name="augment-{concept}")
def augment(
    concept: ConceptName = "cat",
    method: MethodName = "custom-diffusion",
    regularization: str | None = None,
    augment: AugmentOptions = AugmentOptions(),
    model: ModelOptions = ModelOptions(),
) -> Artifact:
    """Augment the concept's pictures and encode them with the regularization images.

    Args:
        concept: whose pictures.
        method: whose words for it, and whose views.
        regularization: a regularization artifact's key; empty takes the newest of the concept's class prompt.
        augment: how many views, and of which kind.
        model: the profile.
    """
    profile = model.resolve()
    taught = methods.get(method).words(concepts.load(concept))
    images = regularization_of(taught, regularization, profile)
    return augmented(taught, images, profile, augment.resolve(profile, method), model.runtime)
