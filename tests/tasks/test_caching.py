"""Prefect asks the store, and believes only it."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from customdiff_core.artifacts import Artifact, Store
from customdiff_core.errors import ConceptError, RetrievalError
from customdiff_core.recipes import Recipe
from tasks import caching
from tasks.caching import StoreCache, retry_unexpected


@dataclass
class Records:
    """Prefect's result records, in memory."""

    written: dict[str, Artifact] = field(default_factory=dict)

    def exists(self, key: str) -> bool:
        return key in self.written

    def write(self, obj: Artifact, key: str) -> None:
        self.written[key] = obj


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    one = Store(tmp_path)
    monkeypatch.setattr(caching, "store", lambda: one)
    return one


def recipe(size: int) -> Recipe:
    if size < 0:
        raise RetrievalError("size: found -1, need a positive one; raise it")
    return Recipe(kind="numbers", inputs={}, config={"size": size}, code="", versions={})


def context(run: str, records: Records) -> Any:
    return SimpleNamespace(task=SimpleNamespace(name="count"), task_run=SimpleNamespace(id=run), result_store=records)


def make(store: Store, size: int) -> Artifact:
    def produce(folder: Path) -> int:
        (folder / "numbers.txt").write_text("1" * size)
        return size

    return store.make(recipe(size), produce)


def test_a_missing_artifact_gives_a_key_that_no_record_has(here: Store) -> None:
    records = Records()
    keys = {StoreCache(recipe=recipe).compute_key(context(run, records), {"size": 3}, {}) for run in "ab"}
    assert len(keys) == 2
    assert not records.written


def test_an_artifact_made_by_anybody_is_recorded_as_the_tasks_result(here: Store) -> None:
    records = Records()
    artifact = make(here, 3)
    keys = {StoreCache(recipe=recipe).compute_key(context(run, records), {"size": 3, "runtime": 1}, {}) for run in "ab"}
    assert records.written == {keys.pop(): artifact}
    assert not keys


def test_a_damaged_artifact_is_not_a_hit_whatever_the_records_say(here: Store) -> None:
    records = Records()
    artifact = make(here, 3)
    hit = StoreCache(recipe=recipe).compute_key(context("a", records), {"size": 3}, {})
    (here.path(artifact) / "numbers.txt").write_text("112")
    assert StoreCache(recipe=recipe).compute_key(context("b", records), {"size": 3}, {}) != hit


def test_a_recipe_that_cannot_be_made_leaves_the_error_to_the_task(here: Store) -> None:
    assert StoreCache(recipe=recipe).compute_key(context("a", Records()), {"size": -1}, {}) is None


def test_bad_input_is_not_retried_and_the_unexpected_is() -> None:
    def state(error: Exception) -> Any:
        return SimpleNamespace(result=lambda raise_on_failure: error)

    assert retry_unexpected(None, None, state(ConnectionError("lost")))
    assert not retry_unexpected(None, None, state(ConceptError("no pictures")))
