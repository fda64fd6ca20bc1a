import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from customdiff_core import artifacts, tables
from customdiff_core.artifacts import MANIFEST, Artifact, Store, write_atomic
from customdiff_core.errors import DiskFullError, StoreError
from customdiff_core.recipes import Recipe
from customdiff_core.settings import REPOSITORY

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")


def recipe(
    kind: str = "delta", inputs: dict[str, str] | None = None, labels: dict[str, str] | None = None, **config
) -> Recipe:
    return Recipe(kind=kind, inputs=inputs or {}, config=config, code="c", versions={}, labels=labels or {})


class Maker:
    """A produce() that counts its calls."""

    def __init__(self, text: str = "some data") -> None:
        self.calls, self.text = 0, text

    def __call__(self, folder: Path) -> int:
        self.calls += 1
        (folder / "data.txt").write_text(self.text)
        (folder / "deep").mkdir()
        (folder / "deep" / "more.txt").write_text("more")
        return 7


def leftovers(store: Store) -> list[str]:
    """Everything in the store but whole artifacts and lock files."""
    names = [path.name for path in store.root.glob("*/*") if not path.name.endswith(".lock")]
    return [name for name in names if name.startswith(".")]


# Make once


def test_an_artifact_is_made_once(store: Store):
    maker = Maker()
    made = store.make(recipe(), maker)
    assert store.make(recipe(), maker) == made == store.find(recipe()) == store.get("delta", made.key)
    assert maker.calls == 1
    assert (made.kind, made.key, made.rows) == ("delta", recipe().key, 7)
    assert (store.path(made) / "data.txt").read_text() == "some data"


def test_another_recipe_is_another_artifact(store: Store):
    one, two = store.make(recipe(a=1), Maker()), store.make(recipe(a=2), Maker())
    assert one.key != two.key
    assert one.sha256 == two.sha256  # the digest is of the content


def test_the_manifest_tells_everything(store: Store):
    made = store.make(recipe(labels={"concept": "cat"}, steps=3), Maker())
    manifest = store.manifest(made)
    assert manifest.recipe == recipe(labels={"concept": "cat"}, steps=3)
    assert manifest.producer == "test"
    assert [(file.name, file.size) for file in manifest.files] == [("data.txt", 9), ("deep/more.txt", 4)]
    assert manifest.created.tzinfo is not None
    assert json.loads((store.path(made) / MANIFEST).read_text())["artifact"]["sha256"] == made.sha256


def test_the_manifest_is_written_last(store: Store, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []
    plain = artifacts.write_atomic

    def watch(path: Path, data: bytes) -> None:
        if path.name == MANIFEST:
            seen.append(sorted(one.name for one in path.parent.rglob("*") if one.is_file()))
            assert not (store.root / "delta" / recipe().key).exists()
        plain(path, data)

    monkeypatch.setattr(artifacts, "write_atomic", watch)
    store.make(recipe(), Maker())
    assert seen == [["data.txt", "more.txt"]]


def test_a_volatile_file_is_verified_and_not_in_the_digest(store: Store, tmp_path: Path):
    one = store.make(recipe(), Maker("took 3 s"), volatile=("data.txt",))
    other = Store(tmp_path / "other").make(recipe(), Maker("took 4 s"), volatile=("data.txt",))
    assert one.sha256 == other.sha256
    (store.path(one) / "data.txt").write_text("took 9 s")
    assert store.problems(store.path(one)) == ["data.txt has other content than was written"]


def test_many_files_are_kept_as_well(store: Store):
    def produce(folder: Path) -> int:
        for number in range(artifacts.SYNC_EACH + 5):
            (folder / f"{number}.txt").write_text(str(number))
        return 1

    made = store.make(recipe(), produce)
    assert len(store.manifest(made).files) == artifacts.SYNC_EACH + 5
    assert store.problems(store.path(made)) == []


# Killed in the middle


def test_a_maker_that_fails_leaves_nothing(store: Store):
    def fail(folder: Path) -> int:
        (folder / "half.txt").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.make(recipe(), fail)
    assert store.find(recipe()) is None
    assert leftovers(store) == []
    assert store.make(recipe(), Maker()).rows == 7


def test_a_maker_that_is_interrupted_leaves_nothing(store: Store):
    def interrupt(folder: Path) -> int:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.make(recipe(), interrupt)
    assert leftovers(store) == []


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from customdiff_core.artifacts import Store
from customdiff_core.recipes import Recipe

root, log, mode = sys.argv[1:]

def produce(folder):
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\\n")
    (folder / "data.txt").write_text("some data")
    if mode == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
    return 7

made = Store(Path(root)).make(Recipe(kind="delta", inputs={}, config={}, code="c", versions={}), produce)
print(made.sha256)
"""


def start(store: Store, log: Path, mode: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROGRAM, str(store.root), str(log), mode]
    return subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_maker_left_is_swept_and_its_lock_is_free(store: Store, tmp_path: Path):
    with start(store, tmp_path / "log", "die") as killed:
        killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(leftovers(store)) == 1
    assert store.find(recipe()) is None
    assert list(store.manifests("delta")) == []
    assert store.make(recipe(), Maker()).rows == 7
    assert leftovers(store) == []


def test_a_finished_manifest_in_a_leftover_is_not_believed(store: Store):
    made = store.make(recipe(), Maker())
    store.path(made).rename(store.root / "delta" / f".{made.key}.x.tmp")
    assert list(store.manifests("delta")) == []
    with pytest.raises(StoreError, match="delta: found none"):
        store.newest("delta")


def test_two_processes_that_want_one_key_make_it_once(store: Store, tmp_path: Path):
    log = tmp_path / "log"
    both = [start(store, log, "wait") for _ in range(2)]
    said = [process.communicate(timeout=60)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(log.read_text().splitlines()) == 1
    assert said[0] == said[1] == store.get("delta", recipe().key).sha256


# Damage


def damage(path: Path, how: str) -> str:
    data = path.read_bytes()
    if how == "deleted":
        path.unlink()
        return "data.txt is missing"
    if how == "truncated":
        path.write_bytes(data[:-2])
        return "data.txt has 7 bytes instead of 9"
    if how == "linked":
        path.rename(path.with_suffix(".moved"))
        path.symlink_to(path.with_suffix(".moved"))
        return "data.txt is missing"
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    return "data.txt has other content than was written"


@pytest.mark.parametrize("how", ["deleted", "truncated", "flipped", "linked"])
def test_damage_is_noticed_set_aside_said_and_made_again(store: Store, how: str, caplog: pytest.LogCaptureFixture):
    made = store.make(recipe(), Maker())
    problem = damage(store.path(made) / "data.txt", how)
    assert store.problems(store.path(made)) == [problem]
    with pytest.raises(StoreError) as error:
        store.get("delta", made.key)
    assert str(error.value) == f"delta {made.key}: found {problem}, need a whole artifact; run the delta stage again"
    maker = Maker()
    with caplog.at_level(logging.WARNING):
        assert store.make(recipe(), maker) == made
    assert maker.calls == 1
    assert f"delta {made.key}: {problem}; set aside as {store.root}/damaged/delta-{made.key}-" in caplog.text
    assert len(list((store.root / "damaged").iterdir())) == 1
    assert (store.path(made) / "data.txt").read_text() == "some data"


@pytest.mark.parametrize("text", [None, "", "{}", '{"artifact": 1'])
def test_without_a_readable_manifest_there_is_no_artifact(store: Store, text: str | None):
    made = store.make(recipe(), Maker())
    manifest = store.path(made) / MANIFEST
    manifest.unlink()
    if text is not None:
        manifest.write_text(text)
    with pytest.raises(StoreError, match=r"found no readable manifest \(\w+\), need manifest.json; make it again"):
        store.manifest(made)
    assert store.find(recipe()) is None
    assert not store.path(made).exists()


@pytest.mark.parametrize(("name", "number"), [("read_bytes", errno.EMFILE), ("open", errno.EIO)])
def test_what_the_system_refuses_to_read_is_not_damaged(
    store: Store, name: str, number: int, monkeypatch: pytest.MonkeyPatch
):
    """Of the manifest, and of a file: too many open files would have moved hours of work aside."""
    made = store.make(recipe(), Maker())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    plain = getattr(Path, name)
    wanted = MANIFEST if name == "read_bytes" else "data.txt"
    monkeypatch.setattr(Path, name, lambda self, *a, **k: (refuse if self.name == wanted else plain)(self, *a, **k))
    said = rf"delta/{made.key}: found {os.strerror(number)} while reading, need it readable; .*: nothing was set aside"
    for look in (
        lambda: store.find(recipe()),
        lambda: store.get("delta", made.key),
        lambda: store.make(recipe(), Maker()),
    ):
        with pytest.raises(StoreError, match=said):
            look()
    if name == "read_bytes":
        with pytest.raises(StoreError, match=said):
            list(store.manifests("delta"))
    monkeypatch.undo()
    assert store.find(recipe()) == made
    assert not (store.root / "damaged").exists()


def test_what_was_damaged_and_is_made_again_meanwhile_is_not_set_aside(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Another process makes it while this one waits for the key."""
    made = store.make(recipe(), Maker())
    damage(store.path(made) / "data.txt", "flipped")
    lock = store.lock

    def mended(kind: str, key: str):
        (store.path(made) / "data.txt").write_text("some data")
        return lock(kind, key)

    monkeypatch.setattr(store, "lock", mended)
    assert store.find(recipe()) == made
    assert not (store.root / "damaged").exists()


def test_a_large_artifact_is_verified_by_size_and_by_hash_on_demand(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(artifacts, "FULL_HASH_LIMIT", 5)
    made = store.make(recipe(), Maker())
    damage(store.path(made) / "data.txt", "flipped")
    assert store.problems(store.path(made)) == []
    assert store.problems(store.path(made), full=True) == ["data.txt has other content than was written"]


def test_an_unknown_key_is_said(store: Store):
    with pytest.raises(StoreError) as error:
        store.get("delta", "abc")
    assert str(error.value) == "delta abc: found nothing there, need a whole artifact; run the delta stage again"


# Looking up


def test_newest_goes_by_label_and_time(store: Store):
    cat, dog = {"concept": "cat", "profile": "p"}, {"concept": "dog", "profile": "p"}
    first = store.make(recipe(labels=cat, n=1), Maker())
    time.sleep(0.01)
    second = store.make(recipe(labels=cat, n=2), Maker())
    time.sleep(0.01)
    other = store.make(recipe(labels=dog, n=3), Maker())
    assert store.newest("delta", concept="cat") == second
    assert store.newest("delta") == store.newest("delta", profile="p") == other
    damage(store.path(second) / "data.txt", "truncated")
    assert store.newest("delta", concept="cat") == first


def test_newest_goes_by_input_where_several_share_one(store: Store):
    shared = store.make(recipe(inputs={"class_prompt": "a cat"}, labels={"concept": "cat"}, n=1), Maker())
    store.make(recipe(inputs={"class_prompt": "a dog"}, labels={"concept": "dog"}, n=2), Maker())
    assert store.newest("delta", inputs={"class_prompt": "a cat"}) == shared
    with pytest.raises(StoreError, match="found none for profile p, class_prompt a cow"):
        store.newest("delta", inputs={"class_prompt": "a cow"}, profile="p")


def test_newest_of_nothing_is_said(store: Store):
    store.make(recipe(labels={"concept": "cat"}), Maker())
    with pytest.raises(StoreError) as error:
        store.newest("delta", concept="dog", profile="p")
    assert str(error.value) == (
        f"delta: found none for concept dog, profile p in {store.root}, need one; run that stage first"
    )


def test_lineage_follows_digests(store: Store):
    index = store.make(recipe("index"), Maker("the index"))
    prior = store.make(recipe("regularization", {"index": index.sha256, "encoder": "e"}), Maker("the prior"))
    store.make(recipe("regularization", {"index": "another"}), Maker("another prior"))
    training = store.make(recipe("training_set", {"regularization": prior.sha256}), Maker("the training set"))
    delta = store.make(recipe("delta", {"training_set": training.sha256, "model": "m"}), Maker("the delta"))
    assert store.lineage(delta) == {"delta": delta, "training_set": training, "regularization": prior, "index": index}
    assert store.lineage(index) == {"index": index}


def test_scratch_stays_until_it_is_removed(store: Store):
    folder = store.scratch("delta", "abc")
    (folder / "step").write_text("1")
    assert store.scratch("delta", "abc") == folder
    assert (folder / "step").read_text() == "1"


# A store that cannot be written


def test_a_store_inside_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError) as error:
        Store(tmp_path / "file" / "store").make(recipe(), Maker())
    assert str(error.value) == (
        f"store {tmp_path}/file/store/delta: found Not a directory, need a folder this user can write; "
        "fix its permissions or set CUSTOMDIFF_STORE to another folder"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path):
    (tmp_path / "delta").mkdir()
    (tmp_path / "delta").chmod(0o500)
    with pytest.raises(StoreError, match=r"delta: found no write permission, need a folder this user can write"):
        Store(tmp_path).make(recipe(), Maker())


def test_a_folder_that_the_system_calls_read_only_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        StoreError, match=r"delta: found no write permission, need a folder this user can write; fix its perm"
    ):
        store.make(recipe(), Maker())


# A full disk


def through_bytes(path: Path) -> None:
    path.write_bytes(b"x" * 100_000)


def through_arrow(path: Path) -> None:
    tables.write(path, [{"image": b"x" * 100_000, "row": row} for row in range(3)])


def through_numpy(path: Path) -> None:
    import numpy as np

    np.save(path, np.zeros(100_000))


def through_faiss(path: Path) -> None:
    import faiss
    import numpy as np

    index = faiss.IndexFlatIP(64)
    index.add(np.zeros((1000, 64), np.float32))
    faiss.write_index(index, str(path))


def through_safetensors(path: Path) -> None:
    # safetensors writes a sibling and renames it, so that no link to /dev/full stops it: its own words instead.
    from safetensors import SafetensorError

    raise SafetensorError(f"Error while serializing: I/O error: No space left on device (os error 28): {path}")


WRITERS = [through_bytes, through_arrow, through_numpy, through_faiss, through_safetensors]


@needs_full
@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_one_message_whoever_writes(store: Store, write: Callable[[Path], None]):
    def produce(folder: Path) -> int:
        (folder / "data.npy").symlink_to("/dev/full")
        write(folder / "data.npy")
        return 1

    with pytest.raises(DiskFullError) as error:
        store.make(recipe(), produce)
    assert str(error.value) == (
        f"store {store.root}/delta: found no space left on the disk while writing, need room for this stage's artifact; "
        "free some space or set CUSTOMDIFF_STORE to a larger disk, then run again: finished stages are kept"
    )
    assert leftovers(store) == []
    assert store.find(recipe()) is None


def test_a_full_disk_before_the_first_byte_is_the_same_message(store: Store, monkeypatch: pytest.MonkeyPatch):
    def no_room(*args: object, **kwargs: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifacts.tempfile, "mkdtemp", no_room)
    with pytest.raises(DiskFullError, match="found no space left on the disk"):
        store.make(recipe(), Maker())


def test_another_error_of_a_maker_stays_what_it_is(store: Store):
    def produce(folder: Path) -> int:
        raise OSError(errno.EIO, "bad sector")

    with pytest.raises(OSError, match="bad sector"):
        store.make(recipe(), produce)


# write_atomic


def test_a_file_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "state"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "state"
    write_atomic(path, b"old")

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(DiskFullError, match=f"store {tmp_path}: found no space left on the disk"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_threads_write_one_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, both, sync = tmp_path / "state", threading.Barrier(2), os.fsync

    def meet(descriptor: int) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(timeout=10)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", meet)  # both temporary files are there
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda data: write_atomic(path, data), (b"one" * 1000, b"two" * 1000)))
    assert path.read_bytes() in (b"one" * 1000, b"two" * 1000)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_into_nowhere_is_a_store_error(tmp_path: Path):
    with pytest.raises(StoreError, match=f"store {tmp_path}/none: found No such file or directory, need a folder"):
        write_atomic(tmp_path / "none" / "state", b"x")


def test_a_handle_is_a_value():
    one = Artifact(kind="delta", key="k", sha256="s", rows=1)
    assert one == Artifact.model_validate_json(one.model_dump_json())
    assert len({one, one.model_copy()}) == 1
