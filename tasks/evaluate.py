"""Task of the evaluate stage."""

from prefect import task

from customdiff_core import stages
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import EvaluateConfig, Runtime
from customdiff_core.profiles import Profile
from tasks.caching import stage
from tasks.publish import named, progress
from tasks.slots import gpu_slot
from tasks.stores import store


@task(name="evaluate", **stage(stages.evaluate))
def evaluate(concept: Concept, delta: Artifact, profile: Profile, config: EvaluateConfig, runtime: Runtime) -> Artifact:
    """Draw with both models and measure, while holding the GPU slot."""
    from customdiff_core.evaluation.evaluate import evaluate as run

    with gpu_slot(), progress(f"{named(concept)}-evaluate", "Images drawn") as tell:
        return run(concept, delta, profile, config, store=store(), runtime=runtime, progress=tell)


@task(name="evaluate-together", **stage(stages.evaluate_together))
def evaluate_together(
    concepts: tuple[Concept, ...],
    subjects: dict[str, Artifact],
    prompts: tuple[str, ...],
    profile: Profile,
    config: EvaluateConfig,
    runtime: Runtime,
    words: dict[str, tuple[str, ...]],
) -> Artifact:
    """Draw all concepts in one picture with every model, and measure, while holding the GPU slot."""
    from customdiff_core.evaluation.together import evaluate_together as run

    with gpu_slot(), progress("together-evaluate", "Images drawn") as tell:
        return run(concepts, subjects, prompts, profile, config, words, store=store(), runtime=runtime, progress=tell)
