"""Flow `evaluate`: how well the concept was learnt, beside the base model."""

from prefect import flow

import tasks.evaluate
from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import EvaluateConfig, Runtime
from customdiff_core.profiles import Profile
from flows.inputs import chosen
from flows.options import ConceptName, EvaluateOptions, ModelOptions
from tasks import publish


def evaluated(
    concept: Concept, delta: Artifact, profile: Profile, config: EvaluateConfig, runtime: Runtime
) -> Artifact:
    """The metrics, shown in the UI."""
    metrics = tasks.evaluate.evaluate(concept, delta, profile, config, runtime)
    publish.evaluated(concept, metrics)
    return metrics


@flow(name="evaluate", flow_run_name="evaluate-{concept}")
def evaluate(
    concept: ConceptName = "cat",
    delta: str | None = None,
    evaluate: EvaluateOptions = EvaluateOptions(),
    model: ModelOptions = ModelOptions(),
) -> Artifact:
    """Draw the same prompts and noise with base and customized model, and measure alignment and KID.

    Args:
        concept: its prompts and pictures.
        delta: a delta's key; empty takes the newest of the concept.
        evaluate: prompts, seeds and sample sizes.
        model: the profile.
    """
    profile = model.resolve()
    trained = chosen("delta", delta, concept, profile)
    loaded = concepts.load(concept, evaluate.prompts)
    return evaluated(loaded, trained, profile, evaluate.resolve(profile), model.runtime)
