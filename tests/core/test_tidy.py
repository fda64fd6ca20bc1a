"""What `customdiff tidy` finds and removes, and what it leaves."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from customdiff_core.artifacts import MANIFEST, Artifact, Store, write_atomic
from customdiff_core.cli.app import app
from customdiff_core.recipes import Recipe
from customdiff_core.tidy import plan, tidy

MONTH = timedelta(days=30)
LONG_AGO = datetime.now(UTC) - timedelta(days=40)


def recipe(kind: str = "delta", **config: int) -> Recipe:
    return Recipe(kind=kind, inputs={}, config=config, code="0", versions={}, extendable=("steps",))


def written(folder: Path) -> int:
    (folder / "file").write_bytes(b"x" * 1000)
    return 1


def scratch(store: Store, key: str, kind: str = "delta", *, old: bool = True) -> Path:
    """A scratch folder, last written long ago or just now."""
    path = store.scratch(kind, key)
    written(path)
    if old:
        for one in (path / "file", path):
            os.utime(one, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
    return path


def found(store: Store, older_than: timedelta = MONTH) -> dict[Path, str]:
    return {one.path: one.why for one in plan(store, older_than)}


def night(store: Store, number: int) -> Artifact:
    """What a run of a benchmark trained long ago."""
    made = Store(store.root, "benchmark-openmoji-nightly (1)").make(recipe(number=number), written)
    manifest = store.manifest(made).model_copy(update={"created": LONG_AGO})
    write_atomic(store.path(made) / MANIFEST, manifest.model_dump_json().encode())
    return made


def test_checkpoints_that_nobody_wrote_for_long_go_and_others_stay(store: Store) -> None:
    finished = recipe(steps=400)
    made = store.make(finished, written)
    done, broken = scratch(store, finished.base_key), scratch(store, "broken")
    newer = scratch(store, "newer", old=False)
    seen = scratch(store, "encoder", "embeddings")
    said = f"last written {LONG_AGO:%Y-%m-%d}"
    assert found(store) == {
        done: f"checkpoints of a finished delta, {said}",
        broken: f"checkpoints of a delta that was broken off, {said}",
    }
    removed = tidy(plan(store, MONTH), store)
    assert [one.bytes for one in removed] == [1000, 1000]
    assert not done.exists()
    assert not broken.exists()
    assert newer.is_dir()
    assert seen.is_dir()
    assert store.find(finished) == made
    assert set(found(store, timedelta())) == {newer}


def test_a_training_that_runs_keeps_its_checkpoints_whatever_their_age(store: Store) -> None:
    path = scratch(store, "one")
    (store.root / "delta").mkdir()
    planned = plan(store, MONTH)
    assert [one.path for one in planned] == [path]
    with store.lock("delta", "another key of the same base"):
        assert found(store) == {}
        assert tidy(planned, store) == []
    assert path.is_dir()


def test_what_a_killed_maker_left_goes_and_what_is_being_made_stays(store: Store) -> None:
    leftover, being_made = (store.root / "delta" / f".{key}.x7.tmp" for key in ("left", "made"))
    for path in (leftover, being_made):
        path.mkdir(parents=True)
        written(path)
    with store.lock("delta", "made"):
        assert found(store) == {leftover: "left by a killed maker of delta left"}
        tidy(plan(store, MONTH), store)
    assert not leftover.exists()
    assert being_made.is_dir()


def test_damaged_artifacts_go_by_when_they_were_set_aside(store: Store) -> None:
    old, new = (
        store.root / "damaged" / f"delta-abc-{int(moment.timestamp() * 1e9)}"
        for moment in (LONG_AGO, datetime.now(UTC))
    )
    for path in (old, new):
        path.mkdir(parents=True)
        written(path)
    assert found(store) == {old: f"damaged, set aside {LONG_AGO:%Y-%m-%d}"}


def test_what_a_night_trained_goes_and_what_somebody_trained_stays(store: Store) -> None:
    made, mine = night(store, 1), store.make(recipe(number=2), written)
    forgotten = store.root / "forgotten.json"
    forgotten.write_text("[]")
    why = f"of benchmark-openmoji-nightly, made {LONG_AGO:%Y-%m-%d}; its figures stay"
    assert found(store) == {store.path(made): why}
    with store.lock("delta", made.key):
        assert tidy(plan(store, MONTH), store) == []
    tidy(plan(store, MONTH), store)
    assert not store.path(made).exists()
    assert store.path(mine).is_dir()
    assert forgotten.is_file()


def test_what_a_running_benchmark_trained_stays(store: Store) -> None:
    made = night(store, 1)
    planned = plan(store, MONTH)
    assert [one.artifact for one in planned] == [made]
    with store.lock("cell", "of tonight"):
        assert found(store) == {}
        assert tidy(planned, store) == []
    assert store.path(made).is_dir()


def test_a_damaged_folder_that_somebody_renamed_goes_by_its_age(store: Store) -> None:
    path = store.root / "damaged" / "delta-abc-old"
    path.mkdir(parents=True)
    assert found(store) == {}
    os.utime(path, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
    assert list(found(store)) == [path]


def test_the_command_says_what_would_go_and_removes_it_with_yes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUSTOMDIFF_STORE", str(store.root))
    path = scratch(store, "broken")

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["tidy", *arguments])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    said = run()
    assert "would remove 0.0 MB checkpoints/delta/broken checkpoints of a delta that was broken off" in said
    assert said.endswith(f"0.0 MB in {store.root}; nothing was removed: say --yes to remove it")
    assert path.is_dir()
    assert "would remove" not in run("--older-than", "60")
    assert "removed 0.0 MB checkpoints/delta/broken" in run("--yes")
    assert not path.exists()
