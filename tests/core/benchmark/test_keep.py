"""Old nights: their scores stay, their trainings and images go."""

import os
import shutil
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import pytest

from customdiff_core import tables
from customdiff_core.artifacts import MANIFEST, Artifact, Manifest, Store, write_atomic
from customdiff_core.benchmark import keep
from customdiff_core.benchmark.costs import involved
from customdiff_core.benchmark.keep import tidy
from customdiff_core.recipes import Recipe
from customdiff_core.tidy import plan

from .conftest import NIGHT, PROTOCOL, Night, read

KEEPING = PROTOCOL.model_copy(update={"keep_nights": 1})
RUN = "benchmark-handmade (1)"
LONG_AGO = datetime.combine(NIGHT - timedelta(days=5), time(4), UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", producer=RUN)


def trainings(store: Store) -> set[str]:
    return {one.artifact.key for one in store.manifests("delta")}


def aged(store: Store, *made: Artifact, when: datetime = LONG_AGO) -> tuple[Artifact, ...]:
    """Set back when artifacts were made; all of the store by default."""
    for one in made or [one.artifact for kind in ("delta", "samples", "cell") for one in store.manifests(kind)]:
        manifest = store.manifest(one).model_copy(update={"created": when})
        write_atomic(store.path(one) / MANIFEST, manifest.model_dump_json().encode())
    return made


def delta(store: Store, name: str, *, of: Collection[Artifact] = (), by: str = RUN, **labels: str) -> Artifact:
    """What stands for a training."""
    inputs = {str(number): one.sha256 for number, one in enumerate(of)} | {"model": "m"}
    config = {"name": name, "steps": 160, "prior_weight": 1.0}
    recipe = Recipe(kind="delta", inputs=inputs, config=config, code="0", versions={}, labels=labels)
    return Store(store.root, by).make(recipe, lambda folder: len((folder / "x").write_text(name) and [1]))


def test_the_trainings_of_a_night_long_past_go_and_what_a_newer_one_uses_stays(store: Store, night: Night) -> None:
    first = night()
    aged(store)
    assert tidy(first, KEEPING, store=store) == []
    old = trainings(store)
    second = night(NIGHT + timedelta(days=1))
    new = trainings(store) - old
    assert old
    assert new
    assert tidy(second, PROTOCOL, store=store) == []  # keeps three
    gone = tidy(second, KEEPING, store=store)
    assert {one.key for one in gone} == old  # and no image: here, both nights have the same
    assert trainings(store) == new
    assert not any(store.path(one).exists() for one in gone)
    cells = read(store, second, "benchmark")["cell"]
    assert all(not store.problems(store.root / "cell" / cell) for cell in cells)
    assert night(NIGHT + timedelta(days=1)) == second
    assert tidy(second, KEEPING, store=store) == []


def test_a_night_that_never_came_to_a_table_goes_too(store: Store, night: Night) -> None:
    """Crashed or cancelled, and never started again: nothing but its runs' name tells of it."""
    part, younger = delta(store, "part"), delta(store, "of last night")
    merged = delta(store, "merged", of=[part])
    aged(store, part, merged)
    aged(store, younger, when=datetime.combine(NIGHT, time(3), UTC))
    table = night()
    table_alone = trainings(store) - {part.key, merged.key, younger.key}
    for name in ("old", "new"):
        (store.scratch("delta", name, {"of": "x"}) / "step").write_text("")
    for path in (store.root / "checkpoints" / "delta" / "old").iterdir():
        os.utime(path, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
    assert set(tidy(table, PROTOCOL, store=store)) == {part, merged}
    assert trainings(store) == table_alone | {younger.key}
    assert [path.name for path in (store.root / "checkpoints" / "delta").iterdir()] == ["new"]


def test_a_scratch_folder_that_its_maker_removes_meanwhile_is_none_of_those_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.scratch("delta", "going", {"of": "x"})
    plain = Path.iterdir

    def gone(self: Path) -> Iterator[Path]:
        shutil.rmtree(folder, ignore_errors=True)
        return plain(self)

    monkeypatch.setattr(Path, "iterdir", gone)
    assert keep.broken_off(store, (RUN,), LONG_AGO + timedelta(days=365)) == []


def test_what_others_made_or_use_stays(store: Store, night: Night) -> None:
    table = night()
    quick, mine = delta(store, "quick", by="benchmark-quick (2)"), delta(store, "mine", by="customize-cat (3)")
    base, part, merged, evaluated = (delta(store, name) for name in ("base", "part", "merged", "evaluated"))
    part = delta(store, "sequential", of=[base])
    mine_of_it = delta(store, "mine of it", of=[part], by="compose-merged (4)")
    aged(store, quick, mine, base, part, merged, evaluated, mine_of_it)
    recipe = Recipe(kind="metrics", inputs={}, config={}, code="0", versions={})
    Store(store.root, "evaluate-cat (5)").make(
        recipe, lambda folder: tables.write(folder / "sources.parquet", [{"name": "x", **evaluated.model_dump()}])
    )
    gone = set(tidy(table, KEEPING, store=store))
    assert merged in gone
    assert gone.isdisjoint({quick, mine, mine_of_it, part, base, evaluated})


def test_what_a_run_with_something_of_its_own_measured_stays(store: Store, night: Night) -> None:
    night(protocol=PROTOCOL.model_copy(update={"stated": "seeds=5"}))
    aged(store)
    before = trainings(store)
    table = night(NIGHT + timedelta(days=1))
    assert tidy(table, KEEPING, store=store) == []
    assert before <= trainings(store)


def test_tidying_a_store_spares_the_nights_that_are_kept(store: Store, night: Night) -> None:
    night(protocol=KEEPING)
    aged(store)
    old = trainings(store)
    night(NIGHT + timedelta(days=1), protocol=KEEPING)
    aged(store)
    found = {one.artifact.key for one in plan(store, timedelta(days=30)) if one.artifact}
    assert found == old


def test_manifests_are_read_once_and_no_cell_of_old_nights(
    store: Store, night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(3):
        table = night(NIGHT + timedelta(days=day))
    kept = set(
        read(store, table, "benchmark").query("night == @table_night", local_dict={"table_night": "2026-03-03"})["cell"]
    )
    asked, measured, plain, look = list[str](), list[str](), Store.manifests, keep._measured

    def manifests(self: Store, kind: str) -> Iterator[Manifest]:
        asked.append(kind)
        return plain(self, kind)

    monkeypatch.setattr(Store, "manifests", manifests)
    monkeypatch.setattr(keep, "_measured", lambda folder: measured.append(folder.name) or look(folder))
    tidy(table, KEEPING, store=store)
    assert sorted(asked) == ["benchmark", "delta", "metrics", "samples", "together"]
    assert set(measured) == kept
    assert len(measured) == len(kept)


def test_a_delta_with_the_content_of_another_is_involved_in_what_it_cost_itself(store: Store) -> None:
    """Two recipes may come to the same bits, such as after a change of code that changes nothing."""
    one = delta(store, "same", kind="one")
    recipe = store.manifest(one).recipe.model_copy(update={"code": "1"})
    two = store.make(recipe, lambda folder: len((folder / "x").write_text("same") and [1]))
    assert one.sha256 == two.sha256
    assert involved(one, store) == [one]
    assert involved(two, store) == [two]
    merged = delta(store, "merged", of=[one])
    assert involved(merged, store) == [merged, two]
