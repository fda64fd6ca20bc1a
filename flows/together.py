"""What comes after several concepts are in one model: figures and a page about all of them."""

from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import Runtime
from customdiff_core.profiles import Profile
from flows.evaluate import evaluated_together
from flows.options import EvaluateOptions
from flows.report import reported_together


def shown_together(
    taught: tuple[Concept, ...],
    subjects: dict[str, Artifact],
    profile: Profile,
    evaluate: EvaluateOptions,
    runtime: Runtime,
) -> Artifact:
    """Evaluate models that know all the concepts, and report; the prompts have {0}, {1}, ... for them."""
    prompts = evaluate.together(len(taught))
    together = evaluated_together(taught, subjects, prompts, profile, evaluate.resolve(profile), runtime)
    return reported_together(taught, {"together": together, **subjects}, profile)
