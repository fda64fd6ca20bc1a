"""What comes after several concepts are in one model: figures and a page about all of them."""

from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import EvaluateConfig, Runtime
from customdiff_core.profiles import Profile
from flows.evaluate import evaluated_together
from flows.report import reported_together


def shown_together(
    taught: tuple[Concept, ...],
    subjects: dict[str, Artifact],
    prompts: tuple[str, ...],
    profile: Profile,
    config: EvaluateConfig,
    runtime: Runtime,
    words: dict[str, tuple[str, ...]] | None = None,
) -> Artifact:
    """Evaluate models that know all the concepts, and report.

    The prompts have {0}, {1}, ... for the concepts; `words` is what those models say there which do not call them as they are.
    """
    together = evaluated_together(taught, subjects, prompts, profile, config, runtime, words)
    return reported_together(taught, {"together": together, **subjects}, profile)


def left_out(known: tuple[tuple[Concept, ...], ...], shown: tuple[Concept, ...]) -> tuple[str, ...]:
    """Say which of the concepts that the parts of a merge know are not drawn or not measured, and why."""
    nameless = [one.noun for part in known for one in part if one not in shown]
    said = [f"{one}: neither drawn nor measured, since it has no category; state it in imported" for one in nameless]
    if len(shown) < 2:
        return *said, f"Nothing is drawn together: found {len(shown)} concept with a category, need 2."
    without = [one.noun for one in shown if not one.images]
    return *said, *(f"{one}: no image alignment, since none of its pictures are here" for one in without)
