"""Flow `evaluate`: how well the concept was learnt, beside the base model."""

from prefect import flow

import tasks.evaluate
from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import EvaluateConfig, Runtime
from customdiff_core.profiles import Profile
from flows.inputs import as_taught, chosen
from flows.options import ConceptName, EvaluateOptions, ModelOptions
from tasks import publish


def evaluated(
    concept: Concept, delta: Artifact, profile: Profile, config: EvaluateConfig, runtime: Runtime
) -> Artifact:
    """The metrics, shown in the UI."""
    metrics = tasks.evaluate.evaluate(concept, delta, profile, config, runtime)
    publish.evaluated(concept, metrics)
    return metrics


def evaluated_together(
    taught: tuple[Concept, ...],
    subjects: dict[str, Artifact],
    prompts: tuple[str, ...],
    profile: Profile,
    config: EvaluateConfig,
    runtime: Runtime,
    words: dict[str, tuple[str, ...]] | None = None,
) -> Artifact:
    """The figures of several concepts in one picture, shown in the UI."""
    together = tasks.evaluate.evaluate_together(taught, subjects, prompts, profile, config, runtime, words or {})
    publish.evaluated_together(taught, together)
    return together


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
        delta: a delta's key; empty takes the newest of the concept, but no benchmark's.
        evaluate: prompts, seeds and sample sizes.
        model: the profile.
    """
    profile = model.resolve(judge=True, measure=True)
    trained = chosen("delta", delta, concept, profile)
    loaded = as_taught(concepts.load(concept, evaluate.prompts), trained)
    return evaluated(loaded, trained, profile, evaluate.resolve(profile), model.runtime)
