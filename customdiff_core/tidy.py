"""Tidy: give disk space back. What it removes can be made again, or is half-made and nobody goes on with it.

    checkpoints/<kind>/<key>/     of trainings, pictures and retrievals, finished or broken off
    <kind>/.<key>.*.tmp           what a killed maker of an artifact left
    damaged/                      what failed its verification
    delta/, samples/              what nights of a benchmark and searches trained and drew, and nobody uses

Whatever is being made, by whatever process, holds its key's lock, and stays.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock, Timeout

from customdiff_core.artifacts import MANIFEST, Artifact, Store
from customdiff_core.benchmark.keep import newest_cells, unneeded
from customdiff_core.stages import MEASURING

KEPT = ("embeddings",)  # in checkpoints: what encoders have seen, by whatever runs next


@dataclass(frozen=True)
class Removable:
    """A folder that may go.

    Args:
        path: where it is.
        why: for the person who decides.
        bytes: its size.
        artifact: which it is; None for what never became one.
    """

    path: Path
    why: str
    bytes: int
    artifact: Artifact | None = None


def plan(store: Store, older_than: timedelta, now: datetime | None = None) -> list[Removable]:
    """Find what `tidy` would remove; changes nothing.

    Args:
        store: where to look.
        older_than: for how long nobody may have worked on it; what a killed maker left goes at any age.
        now: the moment that this counts from.
    """
    before = (now or datetime.now(UTC)) - older_than
    return [*_scratch(store, before), *_temporary(store), *_damaged(store, before), *_nights(store, before)]


def tidy(found: list[Removable], store: Store) -> list[Removable]:
    """Remove what `plan` found, but for what somebody has begun to work on since; return what was removed."""
    return [one for one in found if _remove(one, store)]


def _remove(one: Removable, store: Store) -> bool:
    if one.artifact:
        lock = store.lock(one.artifact.kind, one.artifact.key)
        if _is_held(Path(lock.lock_file)) or _is_busy(store, "cell"):
            return False
        store.remove(one.artifact)
    elif one.path.parent.parent.name == "checkpoints" and _is_busy(store, one.path.parent.name):
        return False
    else:
        shutil.rmtree(one.path, ignore_errors=True)
    return not one.path.exists()


def _scratch(store: Store, before: datetime) -> Iterator[Removable]:
    done = {one.recipe.base_key for one in store.manifests("delta")}
    for kind in sorted(path for path in store.root.glob("checkpoints/*") if path.is_dir()):
        if kind.name in KEPT or _is_busy(store, kind.name):
            continue
        for path in sorted(path for path in kind.iterdir() if path.is_dir()):
            if (touched := _touched(path)) < before:
                finished = path.name in done or (store.root / kind.name / path.name / MANIFEST).is_file()
                what = f"of a finished {kind.name}" if finished else f"of a {kind.name} that was broken off"
                yield Removable(path, f"checkpoints {what}, last written {touched:%Y-%m-%d}", _size(path))


def _temporary(store: Store) -> Iterator[Removable]:
    for path in sorted(store.root.glob("*/.*.tmp")):
        key = path.name[1:].partition(".")[0]
        if path.is_dir() and not _is_held(path.with_name(f".{key}.lock")):
            yield Removable(path, f"left by a killed maker of {path.parent.name} {key}", _size(path))


def _damaged(store: Store, before: datetime) -> Iterator[Removable]:
    for path in sorted(store.root.glob("damaged/*-*-*")):
        said = path.name.rpartition("-")[2]  # when, in nanoseconds
        aside = datetime.fromtimestamp(int(said) / 1e9, UTC) if said.isdecimal() else _touched(path)
        if aside < before:
            yield Removable(path, f"damaged, set aside {aside:%Y-%m-%d}", _size(path))


def _nights(store: Store, before: datetime) -> Iterator[Removable]:
    """None while a cell is being measured: nothing says yet which trainings and pictures it uses."""
    if _is_busy(store, "cell"):
        return
    recent = {one.artifact.key for one in store.manifests("cell") if one.created >= before}
    for one in unneeded(store, MEASURING, before, newest_cells(store) | recent):
        made = store.manifest(one)
        why = f"of {made.producer.partition(' ')[0]}, made {made.created:%Y-%m-%d}; its figures stay"
        yield Removable(store.path(one), why, _size(store.path(one)), one)


def _is_busy(store: Store, kind: str) -> bool:
    """Whether anything of a kind is being made: a training's folder does not say by which key."""
    return any(_is_held(path) for path in (store.root / kind).glob(".*.lock"))


def _is_held(lock: Path) -> bool:
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _touched(folder: Path) -> datetime:
    """When anything of it was written last; now where its maker is removing it."""
    try:
        return datetime.fromtimestamp(max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))), UTC)
    except FileNotFoundError:
        return datetime.now(UTC)


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # its maker is removing it
            size += path.stat().st_size if path.is_file() else 0
    return size
