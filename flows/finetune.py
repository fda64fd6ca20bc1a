"""Flow `finetune`: teach the base model a concept."""

from prefect import flow

import tasks.finetune
from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import FinetuneConfig, Runtime
from customdiff_core.profiles import Profile
from flows.inputs import chosen
from flows.options import ConceptName, ModelOptions, TrainOptions
from tasks import publish


def finetuned(
    concept: Concept, training_set: Artifact, profile: Profile, config: FinetuneConfig, runtime: Runtime
) -> Artifact:
    """The delta, shown in the UI."""
    delta = tasks.finetune.finetune(concept, training_set, profile, config, runtime)
    publish.finetuned(concept, delta)
    return delta


@flow(name="finetune", flow_run_name="finetune-{concept}")
def finetune(
    concept: ConceptName = "cat",
    training_set: str | None = None,
    train: TrainOptions = TrainOptions(),
    model: ModelOptions = ModelOptions(),
) -> Artifact:
    """Train keys, values and V* on a training set.

    Args:
        concept: whose token.
        training_set: a training set's key; empty takes the newest of the concept.
        train: the method's settings.
        model: the profile.
    """
    profile = model.resolve()
    examples = chosen("training_set", training_set, concept, profile)
    return finetuned(concepts.load(concept), examples, profile, train.resolve(profile), model.runtime)
