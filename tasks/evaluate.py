"""Task of the evaluate stage."""

from prefect import task

from customdiff_core import stages
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import EvaluateConfig, Runtime
from customdiff_core.profiles import Profile
from tasks.caching import stage
from tasks.publish import progress
from tasks.slots import gpu_slot
from tasks.stores import store


@task(name="evaluate", **stage(stages.evaluate))
def evaluate(concept: Concept, delta: Artifact, profile: Profile, config: EvaluateConfig, runtime: Runtime) -> Artifact:
    """Draw with both models and measure, while holding the GPU slot."""
    from customdiff_core.evaluation.evaluate import evaluate as run

    with gpu_slot(), progress(f"{concept.name}-evaluate", "Images drawn") as tell:
        return run(concept, delta, profile, config, store=store(), runtime=runtime, progress=tell)
