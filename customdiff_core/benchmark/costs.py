"""What a customized model cost: seconds and memory of training, bytes a concept, share of the network's weights trained.

All of it is computed from the files of the trainings, none of it assumed.
"""

from collections.abc import Iterator
from math import prod

from safetensors import safe_open

from customdiff_core import delta as deltas
from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.profiles import Profile
from customdiff_core.weights import model_folder, weights_files


def costs(delta: Artifact, profile: Profile, store: Store, concepts: int) -> dict[str, float]:
    """Cost of one delta, with everything that it was made from.

    Returns:
        seconds (of training steps, and of merging), memory (bytes, the most while training; NaN where not known), bytes (of the
        file, a concept) and trained_share (numbers changed in the UNet, of all its numbers; V* is none of them).
    """
    path = store.path(delta) / deltas.FILE
    histories = [tables.read(store, one, "history") for one in involved(delta, store) if _was_trained(one, store)]
    seconds = sum(float(history["seconds"].sum()) for history in histories)
    known = [float(one) for history in histories for one in history["memory"].dropna()]
    return {
        "seconds": seconds + (0 if _was_trained(delta, store) else store.manifest(delta).seconds),
        "memory": max(known, default=float("nan")),
        "bytes": path.stat().st_size / concepts,
        "trained_share": _numbers(delta, store) / unet_numbers(profile),
    }


def involved(delta: Artifact, store: Store) -> list[Artifact]:
    """A delta and those that it was made from: parents of a sequential training, parts of a merge.

    These are known by their content: of several with one, the newest counts.
    """
    known = {one.artifact.sha256: one for one in sorted(store.manifests("delta"), key=lambda one: one.created)}
    found, todo = {delta.key: delta}, list(store.manifest(delta).recipe.inputs.values())
    while todo:
        manifest = known.get(todo.pop())
        if manifest is not None and manifest.artifact.key not in found:
            found[manifest.artifact.key] = manifest.artifact
            todo += manifest.recipe.inputs.values()
    return list(found.values())


def unet_numbers(profile: Profile) -> int:
    """How many numbers the UNet has, read from its files' headers."""
    files = weights_files(model_folder(profile.model) / "unet")
    return sum(size for path in files for _, size in _sizes(str(path)))


def _numbers(delta: Artifact, store: Store) -> int:
    sizes = _sizes(str(store.path(delta) / deltas.FILE))
    return sum(size for name, size in sizes if not name.startswith(deltas.TOKEN_PREFIX))


def _sizes(path: str) -> Iterator[tuple[str, int]]:
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118
            yield name, prod(file.get_slice(name).get_shape())


def _was_trained(delta: Artifact, store: Store) -> bool:
    return (store.path(delta) / "history.parquet").is_file()
