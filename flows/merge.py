"""Flow `merge`: several deltas into one, in closed form."""

from prefect import flow

import tasks.merge
from customdiff_core.artifacts import Artifact
from customdiff_core.config import IndexConfig, MergeConfig, Runtime
from customdiff_core.profiles import Profile
from customdiff_core.stages import require_captions
from flows.build_index import indexed
from flows.inputs import taken, taken_in
from flows.options import ImportOptions, MergeOptions, ModelOptions
from tasks import publish
from tasks.stores import store


def merged(
    parts: tuple[Artifact, ...],
    strengths: tuple[float, ...],
    profile: Profile,
    config: MergeConfig,
    runtime: Runtime,
    left_out: tuple[str, ...] = (),
) -> Artifact:
    """The merged delta, shown in the UI; `left_out` says what nothing after it will show."""
    index = indexed(profile, IndexConfig(), runtime)
    delta = tasks.merge.merge(parts, strengths, index, profile, config)
    publish.merged(delta, left_out)
    return delta


@flow(name="merge", validate_parameters=True)
def merge(
    deltas: list[str] = ["cat", "dog"],  # noqa: B006 - the run form shows it
    merge: MergeOptions = MergeOptions(),
    imported: ImportOptions = ImportOptions(),
    model: ModelOptions = ModelOptions(),
) -> Artifact:
    """Merge what was trained, imported or merged before.

    Args:
        deltas: concepts (Custom Diffusion's longest training of each with the profile's settings), keys of deltas, or files of
            other programs.
        merge: strengths, and how the weights are held.
        imported: what the files do not say of themselves.
        model: the profile.
    """
    profile = model.resolve()
    config, strengths = merge.resolve(profile, len(deltas))
    require_captions(profile, store())
    there = taken_in(deltas, profile, imported.stated())
    parts = tuple(there[one] if one in there else taken(one, profile) for one in deltas)
    return merged(parts, strengths, profile, config, model.runtime)
