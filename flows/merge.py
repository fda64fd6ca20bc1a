"""Flow `merge`: several deltas into one, in closed form."""

from prefect import flow

import tasks.merge
from customdiff_core.artifacts import Artifact
from customdiff_core.config import IndexConfig, Runtime
from customdiff_core.profiles import Profile
from flows.build_index import indexed
from flows.inputs import taken, taken_in
from flows.options import ImportOptions, MergeOptions, ModelOptions
from tasks import publish


def merged(parts: tuple[Artifact, ...], options: MergeOptions, profile: Profile, runtime: Runtime) -> Artifact:
    """The merged delta, shown in the UI."""
    config, strengths = options.resolve(profile, len(parts))
    index = indexed(profile, IndexConfig(), runtime)
    delta = tasks.merge.merge(parts, strengths, index, profile, config)
    publish.merged(delta)
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
        deltas: concepts (Custom Diffusion's longest training of each), keys of deltas, or files of other programs.
        merge: strengths, and how the weights are held.
        imported: what the files do not say of themselves.
        model: the profile.
    """
    profile = model.resolve()
    files = taken_in(deltas, profile, imported.stated())
    parts = tuple(files[one] if one in files else taken(one, profile) for one in deltas)
    return merged(parts, merge, profile, model.runtime)
