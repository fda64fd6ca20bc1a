"""Flow `finetune`: teach the base model a concept."""

from prefect import flow

import tasks.finetune
from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import FinetuneConfig, Runtime
from customdiff_core.finetuning import methods
from customdiff_core.profiles import Profile
from flows.inputs import chosen, training_set_of
from flows.options import ConceptName, ModelOptions, TrainOptions
from tasks import publish


def finetuned(
    taught: tuple[Concept, ...],
    training_sets: tuple[Artifact, ...],
    profile: Profile,
    config: FinetuneConfig,
    runtime: Runtime,
    parent: Artifact | None = None,
) -> Artifact:
    """The delta, shown in the UI."""
    delta = tasks.finetune.finetune(taught, training_sets, profile, config, runtime, parent)
    publish.finetuned(taught, delta)
    return delta


@flow(name="finetune", flow_run_name="finetune-{concept}")
def finetune(
    concept: ConceptName = "cat",
    training_set: str | None = None,
    parent: str | None = None,
    train: TrainOptions = TrainOptions(),
    model: ModelOptions = ModelOptions(),
) -> Artifact:
    """Train what the method trains on a training set.

    Args:
        concept: whose token.
        training_set: a training set's key; empty takes the newest of the concept in the method's words and views.
        parent: a delta's key, to go on from with what it knows (sequential training).
        train: the method and its settings.
        model: the profile.
    """
    profile = model.resolve()
    wanted = methods.get(train.method).words(concepts.load(concept))
    examples = training_set_of(wanted, training_set, train.method, profile)
    before = chosen("delta", parent, concept, profile) if parent else None
    return finetuned((wanted,), (examples,), profile, train.resolve(profile), model.runtime, before)
