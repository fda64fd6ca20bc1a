from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import tasks.benchmark
from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark.protocol import load
from customdiff_core.recipes import Recipe

NIGHT = date(2026, 3, 2)


def benchmark(store: Store, *, outside: bool, failed: bool) -> Artifact:
    """Two nights of one row, the second as told."""
    cell = {"row": "joint", "concepts": "cat+dog", "seed": 1}
    nights = [("2026-03-01", "measured", ""), ("2026-03-02", "failed" if failed else "measured", "out of memory")]
    chart = {"row": "joint", "metric": "text_alignment", "value": 0.2, "low": 0.5, "high": 0.9}

    def produce(folder: Path) -> int:
        tables.write(folder / "benchmark.parquet", [cell | {"night": a, "status": b, "error": c} for a, b, c in nights])
        marks = [("2026-03-01", True), ("2026-03-02", outside)]
        return tables.write(
            folder / "drift.parquet", pd.DataFrame([chart | {"night": a, "outside": b} for a, b in marks])
        )

    config = {"outside": outside, "failed": failed}
    return store.make(Recipe(kind="benchmark", inputs={}, config=config, code="", versions={}), produce)


@pytest.fixture
def fired(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The events that are sent, as name and content."""
    sent: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(tasks.benchmark, "store", lambda: store)
    monkeypatch.setattr(tasks.benchmark, "flow_run", SimpleNamespace(id="a-run"))
    monkeypatch.setattr(tasks.benchmark, "emit_event", lambda event, **content: sent.append((event, content)))
    return sent


def test_a_night_outside_its_limits_fires_an_event_that_says_what(store: Store, fired: list[Any]) -> None:
    tasks.benchmark.announce(benchmark(store, outside=True, failed=False), load("openmoji-nightly"), NIGHT)
    [(event, content)] = fired
    assert event == "customdiff.benchmark.outside"
    assert content["resource"]["prefect.resource.id"] == "customdiff.benchmark.openmoji-nightly"
    assert content["payload"] == {
        "night": "2026-03-02",
        "what": ["Custom Diffusion, joint: Text alignment 0.200, expected 0.500 to 0.900"],
    }


def test_a_failed_cell_fires_another_and_a_quiet_night_none(store: Store, fired: list[Any]) -> None:
    protocol = load("openmoji-nightly")
    tasks.benchmark.announce(benchmark(store, outside=False, failed=False), protocol, NIGHT)
    assert fired == []
    tasks.benchmark.announce(benchmark(store, outside=False, failed=True), protocol, NIGHT)
    [(event, content)] = fired
    assert event == "customdiff.benchmark.incomplete"
    assert content["payload"]["what"] == ["joint, cat+dog, seed 1: out of memory"]


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The states of the run that asks, newest first."""
    said: list[SimpleNamespace] = []

    @contextmanager
    def client(*, sync_client: bool) -> Generator[SimpleNamespace]:
        assert sync_client
        yield SimpleNamespace(read_flow_run_states=lambda run: said if run == "a-run" else [])

    monkeypatch.setattr(tasks.benchmark, "flow_run", SimpleNamespace(id="a-run"))
    monkeypatch.setattr(tasks.benchmark, "get_client", client)
    return said


def state(at: datetime, scheduled: datetime | None = None) -> SimpleNamespace:
    return SimpleNamespace(timestamp=at, state_details=SimpleNamespace(scheduled_time=scheduled))


def test_a_retry_after_midnight_belongs_to_the_night_it_was_scheduled_for(states: list[SimpleNamespace]) -> None:
    evening = datetime(2026, 3, 2, 23, 30, tzinfo=UTC)
    scheduled = state(evening - timedelta(days=1), evening)  # a schedule plans its runs days ahead
    running, retried = state(evening), state(evening + timedelta(hours=2), evening + timedelta(hours=2))
    states[:] = [state(evening + timedelta(hours=3)), retried, running, scheduled]
    assert tasks.benchmark.scheduled_night() == NIGHT


def test_a_night_is_a_date_of_utc_whatever_the_clock_of_the_machine(states: list[SimpleNamespace]) -> None:
    states[:] = [state(datetime(2026, 3, 3, 4, 0, tzinfo=timezone(timedelta(hours=9))))]
    assert tasks.benchmark.scheduled_night() == NIGHT


def test_a_run_without_a_history_is_of_today(states: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    before = datetime.now(UTC).date()
    nights = {tasks.benchmark.scheduled_night()}
    monkeypatch.setattr(tasks.benchmark, "flow_run", SimpleNamespace(id=None))
    nights.add(tasks.benchmark.scheduled_night())
    assert nights <= {before, datetime.now(UTC).date()}
