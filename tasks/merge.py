"""Tasks of the merge stage: another program's file into the store, and several deltas into one."""

from pathlib import Path

from prefect import task

from customdiff_core import stages
from customdiff_core.artifacts import Artifact
from customdiff_core.config import MergeConfig, Stated
from customdiff_core.profiles import Profile
from tasks.caching import stage
from tasks.publish import progress
from tasks.stores import store


@task(name="import", retries=0)
def import_delta(path: Path, profile: Profile, stated: Stated) -> Artifact:
    """Take a file into the store; the store says whether it is there already."""
    from customdiff_core.interop.importing import import_delta as run

    return run(path, profile, stated, store=store())


@task(name="merge", **stage(stages.merge))
def merge(
    parts: tuple[Artifact, ...],
    strengths: tuple[float, ...],
    index: Artifact | None,
    profile: Profile,
    config: MergeConfig,
) -> Artifact:
    """Solve for the merged weights; seconds on a CPU, so that no slot is held."""
    from customdiff_core.merging.merge import merge as run

    with progress("merge", "Layers merged") as tell:
        return run(parts, strengths, index, profile, config, store=store(), progress=tell)
