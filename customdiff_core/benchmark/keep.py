"""Keep: what stays of earlier nights. Scores stay for ever; trainings and images, half a gigabyte a night, for some nights."""

import logging
import shutil
from collections.abc import Collection
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from customdiff_core import tables
from customdiff_core.artifacts import PRODUCER, Artifact, Manifest, Store
from customdiff_core.benchmark.history import KIND
from customdiff_core.benchmark.protocol import Protocol

logger = logging.getLogger(__name__)

KINDS = ("delta", "samples")  # what a night leaves, and can be made again
HISTORY = ("protocol", "stated", "profile")  # the labels that nights of one history have in common


def tidy(benchmark: Artifact, protocol: Protocol, *, store: Store) -> list[Artifact]:
    """Remove the trainings and images of all nights but the newest `protocol.keep_nights`.

    Also those of nights that never came to a table. What a newer night, another history of nights or anybody else uses stays,
    such as the base model's images. The scores of every cell stay, which is all that later nights ask of it; a removed training
    can be made again.

    Args:
        benchmark: the newest night's table, from `tabulate`.
        protocol: which nights it keeps.
        store: where they are.

    Returns:
        What was removed.
    """
    runs, before = (f"benchmark-{protocol.name} (",), first_kept(benchmark, protocol.keep_nights, store)
    gone = unneeded(store, runs, before, kept_cells(store, benchmark, protocol.keep_nights))
    for artifact in gone:
        store.remove(artifact)
    for folder in broken_off(store, runs, before):
        shutil.rmtree(folder, ignore_errors=True)
    if gone:
        logger.info("removed %d trainings and sets of images of nights before %s", len(gone), before.date())
    return gone


def first_kept(benchmark: Artifact, count: int, store: Store) -> datetime:
    """When the oldest night began of the `count` newest, measured or not."""
    tonight = date.fromisoformat(store.manifest(benchmark).recipe.labels["night"])
    oldest = date.fromisoformat(min(_nights(benchmark, count, store)))
    return datetime.combine(min(oldest, tonight - timedelta(days=count - 1)), time(), UTC)


def kept_cells(store: Store, benchmark: Artifact, count: int) -> set[str]:
    """Keys of the cells of the `count` newest nights, and of every night of other histories, which tidy up after themselves."""
    own = _history(store.manifest(benchmark))
    others = [one for one in store.manifests(KIND) if _history(one) != own]
    return _cells(store, benchmark, count) | {cell["key"] for one in others for cell in one.recipe.config["cells"]}


def newest_cells(store: Store) -> set[str]:
    """Keys of the cells of the nights that every history keeps."""
    histories: dict[tuple[str | None, ...], list[Manifest]] = {}
    for one in sorted(store.manifests(KIND), key=lambda one: (one.recipe.labels["night"], one.created), reverse=True):
        histories.setdefault(_history(one), []).append(one)
    found = set[str]()
    for nights in histories.values():
        if newest := store.first_whole(nights):
            count = store.manifest(newest).recipe.config["protocol"]["keep_nights"]
            found |= _cells(store, newest, count)
    return found


def unneeded(store: Store, runs: tuple[str, ...], before: datetime, cells: Collection[str]) -> list[Artifact]:
    """The trainings and images that certain runs made before a moment and nobody needs.

    Needed is what these cells measured, what others made or use, and what that was made from.

    Args:
        store: where they are.
        runs: how the runs' names begin.
        before: when it was made.
        cells: keys of the cells whose trainings and images stay.
    """
    made = [one for kind in KINDS for one in store.manifests(kind)]
    ours = {one.artifact.key: one for one in made if one.producer.startswith(runs) and one.created < before}
    others = [one for one in made if one.artifact.key not in ours]
    evaluations = [one for kind in ("metrics", "together") for one in store.manifests(kind)]
    measured = [store.root / "cell" / cell for cell in cells] + [store.path(one.artifact) for one in evaluations]
    try:
        needed = {digest for folder in measured for digest in _measured(folder)}
    except pa.ArrowException as error:  # what it used cannot be known
        logger.warning("a cell or evaluation is damaged, so that nothing is removed: %s", error)
        return []
    needed |= {digest for one in (*others, *evaluations) for digest in one.recipe.inputs.values()}
    while reached := [one for one in ours.values() if one.artifact.sha256 in needed]:
        needed |= {digest for one in reached for digest in one.recipe.inputs.values()}
        ours = {key: one for key, one in ours.items() if one.artifact.sha256 not in needed}
    return [one.artifact for one in ours.values()]


def broken_off(store: Store, runs: tuple[str, ...], before: datetime) -> list[Path]:
    """The scratch folders of what certain runs began, and nobody worked on since a moment."""
    notes = [note for kind in KINDS for note in sorted(store.root.glob(f"checkpoints/{kind}/*/{PRODUCER}"))]
    return [note.parent for note in notes if _is_left(note, runs, before)]


def _is_left(note: Path, runs: tuple[str, ...], before: datetime) -> bool:
    try:
        touched = max(path.stat().st_mtime for path in note.parent.iterdir())
        return note.read_text().startswith(runs) and touched < before.timestamp()
    except (FileNotFoundError, ValueError):  # whoever works there is done, and removes it
        return False


def _nights(benchmark: Artifact, count: int, store: Store) -> list[str]:
    return sorted(set(tables.read(store, benchmark, KIND, ["night"])["night"]))[-count:]


def _cells(store: Store, benchmark: Artifact, count: int) -> set[str]:
    cells = tables.read(store, benchmark, KIND, ["night", "cell"])
    return set(cells.loc[cells["night"].isin(_nights(benchmark, count, store)), "cell"])


def _history(benchmark: Manifest) -> tuple[str | None, ...]:
    return tuple(benchmark.recipe.labels.get(name) for name in HISTORY)


def _measured(folder: Path) -> list[str]:
    """The digests of what a cell or an evaluation measured; none where it is no longer there."""
    try:
        return pq.read_table(folder / "sources.parquet", columns=["sha256"])["sha256"].to_pylist()
    except FileNotFoundError:
        return []
