"""The artifact store: the one cache of the pipeline, shared by flows, notebooks and the command line.

    <store>/<kind>/<key>/manifest.json ...files

An artifact is written into a temporary sibling, hashed, synced and renamed; `manifest.json` is written last, so that a
manifest means "complete". A hit is verified before it is believed, and a damaged artifact is set aside and made again.
Two processes that want the same key make it once (flock, which the kernel releases when its holder dies).
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock
from pydantic import ValidationError

from customdiff_core.config import Frozen
from customdiff_core.errors import DamagedError, DiskFullError, MissingError, StoreError
from customdiff_core.recipes import Recipe, digest_of
from customdiff_core.settings import Settings

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
INPUTS, PRODUCER = "inputs.json", "producer.txt"  # of a scratch folder
WITHDRAWN = "withdrawn.json"  # digests
FULL_HASH_LIMIT = 2 * 1024**3  # bytes; a larger artifact is verified by presence and sizes, and by hash on demand
SYNC_EACH = 64  # files; more are flushed by one sync of the machine's disks, which is faster


class Artifact(Frozen):
    """A handle: what stages hand to each other instead of tensors or paths."""

    kind: str
    key: str
    sha256: str
    rows: int


class File(Frozen):
    """One file of an artifact. A volatile one (timings) is kept and verified, but is not part of the digest."""

    name: str
    size: int
    sha256: str
    volatile: bool = False


class Manifest(Frozen):
    """What is known of an artifact; written last."""

    artifact: Artifact
    recipe: Recipe
    files: tuple[File, ...]
    created: datetime
    seconds: float
    producer: str


class Store:
    """A folder of artifacts.

    Args:
        root: the folder; made when missing.
        producer: who makes artifacts through this object: a run's name and id, or "library".
    """

    def __init__(self, root: Path | None = None, producer: str = "library") -> None:
        self.root = (root or Settings().store).resolve()
        self.producer = producer

    def path(self, artifact: Artifact) -> Path:
        """Return the artifact's folder."""
        return self.root / artifact.kind / artifact.key

    def scratch(self, kind: str, key: str, inputs: Mapping[str, str] = {}) -> Path:
        """Return a folder for the checkpoints of a long stage; kept until the caller removes it.

        Args:
            kind: of the artifact that is made there.
            key: its key, or what several of its kind share.
            inputs: the recipe's; noted in it, with who works there, so that `unfinished` finds what works on an artifact.
        """
        path = self.root / "checkpoints" / kind / key
        self._make_folder(path)
        if inputs:
            write_atomic(path / INPUTS, json.dumps(sorted(inputs.values())).encode())
            write_atomic(path / PRODUCER, self.producer.encode())
        return path

    def drop_scratch(self, kind: str, key: str) -> None:
        """Remove the folder of `scratch`, if it is there."""
        shutil.rmtree(self.root / "checkpoints" / kind / key, ignore_errors=True)

    def unfinished(self, digests: Collection[str]) -> list[Path]:
        """Return the scratch folders of stages that work, or worked, on artifacts with one of these digests."""
        found: list[Path] = []
        for path in sorted(self.root.glob(f"checkpoints/*/*/{INPUTS}")):
            with suppress(FileNotFoundError):  # its stage is done
                if not set(json.loads(path.read_bytes())).isdisjoint(digests):
                    found.append(path.parent)
        return found

    @property
    def withdrawn(self) -> frozenset[str]:
        """Digests of artifacts of which nothing may be made any more."""
        path = self.root / WITHDRAWN
        return frozenset(json.loads(path.read_bytes())) if path.is_file() else frozenset()

    def withdraw(self, artifacts: Iterable[Artifact]) -> None:
        """Note that nothing may be made of these any more: what is being made of them now is refused at its end."""
        path = self.root / WITHDRAWN
        with FileLock(path.with_name(f".{path.name}.lock")):
            write_atomic(path, json.dumps(sorted({one.sha256 for one in artifacts} | self.withdrawn)).encode())

    def manifest(self, artifact: Artifact) -> Manifest:
        """Read an artifact's manifest.

        Raises:
            StoreError: if it is missing or unreadable.
        """
        return self._read_manifest(self.path(artifact))

    def find(self, recipe: Recipe) -> Artifact | None:
        """Return the recipe's artifact when it is there and whole; set a damaged one aside and return None."""
        folder = self.root / recipe.kind / recipe.key
        if not folder.exists():
            return None
        if not self.problems(folder):
            return self._read_manifest(folder).artifact
        with self.lock(recipe.kind, recipe.key):  # by now another process may have made it again
            return self._settled(recipe)

    def _settled(self, recipe: Recipe) -> Artifact | None:
        """As `find`, for who has the key's lock."""
        folder = self.root / recipe.kind / recipe.key
        problems = self.problems(folder) if folder.exists() else []
        if problems:
            self._set_aside(folder, problems)
        return self._read_manifest(folder).artifact if folder.exists() else None

    def lock(self, kind: str, key: str) -> FileLock:
        """What whoever makes an artifact holds; the kernel releases that of a process that died."""
        return FileLock(self.root / kind / f".{key}.lock")

    def make(self, recipe: Recipe, produce: Callable[[Path], int], volatile: tuple[str, ...] = ()) -> Artifact:
        """Return the recipe's artifact, calling `produce(folder) -> rows` only when no whole one is there.

        Raises:
            StoreError: if the store cannot be written, or an input was withdrawn meanwhile; DiskFullError if no space is left.
                Nothing half-made remains.
        """
        parent = self.root / recipe.kind
        self._make_folder(parent)
        with self.lock(recipe.kind, recipe.key):
            found = self._settled(recipe)
            if found is not None:
                return found
            self._sweep(parent, recipe.key)
            with self._temporary(parent, recipe.key) as temporary:
                started = time.monotonic()
                rows = produce(temporary)
                manifest = self._seal(temporary, recipe, rows, time.monotonic() - started, volatile)
                temporary.rename(parent / recipe.key)
                _sync(parent)
        # Looked at when it is in its place: whoever withdraws an input now finds it there.
        if not self.withdrawn.isdisjoint(recipe.inputs.values()):
            self.remove(manifest.artifact)
            for key in (recipe.key, recipe.base_key):
                shutil.rmtree(self.root / "checkpoints" / recipe.kind / key, ignore_errors=True)
            raise StoreError(
                f"{recipe.kind} {recipe.key}: found that what it was made from was withdrawn meanwhile (customdiff forget), need "
                "it made anew; run this again from the retrieval on"
            )
        return manifest.artifact

    def get(self, kind: str, key: str) -> Artifact:
        """Return the artifact with this key, verified.

        Raises:
            StoreError: if there is none, or it is damaged.
        """
        folder = self.root / kind / key
        problems = self.problems(folder) if folder.exists() else ["nothing there"]
        if problems:
            raise StoreError(f"{kind} {key}: found {problems[0]}, need a whole artifact; run the {kind} stage again")
        return self._read_manifest(folder).artifact

    def newest(
        self, kind: str, *, inputs: Mapping[str, str] = {}, config: Mapping[str, Any] = {}, **labels: str
    ) -> Artifact:
        """Return the newest whole artifact of a kind whose inputs, settings and labels agree, such as concept="cat".

        Raises:
            MissingError: if there is none.
        """
        fitting = [
            one
            for one in self.manifests(kind)
            if labels.items() <= one.recipe.labels.items()
            and inputs.items() <= one.recipe.inputs.items()
            and all(one.recipe.config.get(name) == value for name, value in config.items())
        ]
        found = self.first_whole(sorted(fitting, key=lambda one: one.created, reverse=True))
        if found:
            return found
        wanted = ", ".join(f"{name} {value}" for name, value in {**labels, **inputs, **config}.items()) or "any label"
        raise MissingError(f"{kind}: found none for {wanted} in {self.root}, need one; run that stage first")

    def first_whole(self, found: Iterable[Manifest]) -> Artifact | None:
        """Return the first artifact that is there undamaged; None if none is."""
        return next((one.artifact for one in found if not self.problems(self.path(one.artifact))), None)

    def lineage(self, artifact: Artifact) -> dict[str, Artifact]:
        """Return an artifact and the artifacts that it was made from, by kind, found by their digests."""
        chain = {artifact.kind: artifact}
        inputs = dict(self.manifest(artifact).recipe.inputs)
        while inputs:
            kind, digest = inputs.popitem()
            found = [one for one in self.manifests(kind) if one.artifact.sha256 == digest]
            if kind not in chain and found:
                newest = max(found, key=lambda one: one.created)
                chain[kind] = newest.artifact
                inputs |= newest.recipe.inputs
        return chain

    def manifests(self, kind: str) -> Iterator[Manifest]:
        """Yield every whole manifest of a kind.

        Raises:
            StoreError: if the system refuses to read one.
        """
        for path in sorted((self.root / kind).glob(f"*/{MANIFEST}")):
            if path.parent.name.startswith("."):  # being made, or left by a killed maker
                continue
            try:
                yield self._read_manifest(path.parent)
            except DamagedError as error:
                logger.warning("%s", error)

    def problems(self, folder: Path, *, full: bool | None = None) -> list[str]:
        """List what is wrong with an artifact's folder; empty when it is whole.

        Args:
            folder: the artifact's folder.
            full: compare hashes as well as sizes; by default when the artifact is smaller than FULL_HASH_LIMIT.

        Raises:
            StoreError: if the system refuses to read it, which says nothing of what is in it.
        """
        try:
            manifest = self._read_manifest(folder)
        except DamagedError as error:
            return [str(error)]
        if full is None:
            full = sum(file.size for file in manifest.files) < FULL_HASH_LIMIT
        try:
            return [problem for file in manifest.files if (problem := _problem(folder / file.name, file, full))]
        except OSError as error:
            raise _unreadable(error, folder) from error

    def remove(self, artifact: Artifact) -> None:
        """Delete an artifact; never is half of one left under its name."""
        folder = self.path(artifact)
        aside = folder.with_name(f".{artifact.key}.{time.time_ns()}.tmp")
        try:
            folder.rename(aside)
        except FileNotFoundError:  # another process was first
            return
        shutil.rmtree(aside, ignore_errors=True)

    def _seal(self, folder: Path, recipe: Recipe, rows: int, seconds: float, volatile: tuple[str, ...]) -> Manifest:
        """Hash and sync the files, then write the manifest: from here on the artifact is complete."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = tuple(
            File(name=name, size=path.stat().st_size, sha256=sha256_of(path), volatile=name in volatile)
            for path in paths
            for name in [path.relative_to(folder).as_posix()]
        )
        digest = digest_of([[file.name, file.sha256] for file in files if not file.volatile])
        manifest = Manifest(
            artifact=Artifact(kind=recipe.kind, key=recipe.key, sha256=digest, rows=rows),
            recipe=recipe,
            files=files,
            created=datetime.now(UTC),
            seconds=round(seconds, 3),
            producer=self.producer,
        )
        if len(paths) > SYNC_EACH:
            os.sync()
        else:
            for path in paths:
                _sync(path)
        write_atomic(folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
        return manifest

    @contextmanager
    def _temporary(self, parent: Path, key: str) -> Generator[Path]:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f".{key}.", suffix=".tmp", dir=parent))
        except OSError as error:
            raise _store_error(error, parent) from error
        try:
            yield folder
        except Exception as error:
            if _no_space(error):
                raise _store_error(OSError(errno.ENOSPC, str(error)), parent) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self, parent: Path, key: str) -> None:
        """Remove what a killed maker of this key left; its lock is ours, so nobody writes there."""
        for leftover in parent.glob(f".{key}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _set_aside(self, folder: Path, problems: list[str]) -> None:
        aside = self.root / "damaged" / f"{folder.parent.name}-{folder.name}-{time.time_ns()}"
        self._make_folder(aside.parent)
        try:
            folder.rename(aside)
        except FileNotFoundError:  # another process set it aside first
            return
        logger.warning("%s %s: %s; set aside as %s", folder.parent.name, folder.name, "; ".join(problems[:3]), aside)

    def _make_folder(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _store_error(error, path) from error
        if not os.access(path, os.W_OK):
            raise _store_error(PermissionError(errno.EACCES, "no write permission"), path)

    @staticmethod
    def _read_manifest(folder: Path) -> Manifest:
        try:
            return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError) as error:
            kind = type(error).__name__
            raise DamagedError(
                f"{folder}: found no readable manifest ({kind}), need {MANIFEST}; make it again"
            ) from error
        except OSError as error:
            raise _unreadable(error, folder) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent: temporary sibling, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    place_atomic(temporary, lambda: temporary.write_bytes(data), lambda: path)


def place_atomic(temporary: Path, write: Callable[[], object], place: Callable[[], Path]) -> None:
    """Have a temporary file written, synced and renamed, so that it is either whole at its place or absent.

    Args:
        temporary: a sibling of the place.
        write: writes it.
        place: where it goes, asked for when it is written: its name may tell its content.

    Raises:
        StoreError: if it cannot be written; DiskFullError if no space is left.
    """
    try:
        write()
        _sync(temporary)
        temporary.rename(place())
    except OSError as error:
        raise _store_error(error, temporary.parent) from error
    except Exception as error:
        if _no_space(error):
            raise _store_error(OSError(errno.ENOSPC, str(error)), temporary.parent) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _sync(temporary.parent)


def _problem(path: Path, file: File, full: bool) -> str | None:
    try:
        size = path.stat().st_size
        if path.is_symlink() or not path.is_file():
            return f"{file.name} is missing"
        if size != file.size:
            return f"{file.name} has {size} bytes instead of {file.size}"
        if full and sha256_of(path) != file.sha256:
            return f"{file.name} has other content than was written"
    except (FileNotFoundError, NotADirectoryError):
        return f"{file.name} is missing"
    return None


def _unreadable(error: OSError, folder: Path) -> StoreError:
    return StoreError(
        f"{folder}: found {error.strerror or error} while reading, need it readable; see to the disk, its permissions or the "
        "limit of open files, and run this again: nothing was set aside"
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_space(error: Exception) -> bool:
    """Whether a library's error means a full disk: Arrow and safetensors wrap the system's own, SQLite says it in its words."""
    said = ("No space left on device", "database or disk is full")
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(words in str(error) for words in said)


def _store_error(error: OSError, path: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"store {path}: found no space left on the disk while writing, need room for this stage's artifact; "
            "free some space or set CUSTOMDIFF_STORE to a larger disk, then run again: finished stages are kept"
        )
    return StoreError(
        f"store {path}: found {error.strerror or error}, need a folder this user can write; "
        "fix its permissions or set CUSTOMDIFF_STORE to another folder"
    )
