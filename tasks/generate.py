"""Task that draws one's own prompts."""

from prefect import task

from customdiff_core import stages
from customdiff_core.artifacts import Artifact
from customdiff_core.config import Runtime, SampleConfig
from customdiff_core.profiles import Profile
from tasks.caching import stage
from tasks.publish import progress
from tasks.slots import gpu_slot
from tasks.stores import store


@task(name="generate", **stage(stages.generate))
def generate(
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    delta: Artifact | None,
    profile: Profile,
    config: SampleConfig,
    runtime: Runtime,
) -> Artifact:
    """Draw prompts x seeds, while holding the GPU slot."""
    from customdiff_core.sampling import generate as run

    with gpu_slot(), progress("generate", "Images drawn") as tell:
        return run(prompts, seeds, delta, profile, config, store=store(), runtime=runtime, progress=tell)
