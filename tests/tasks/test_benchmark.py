from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pandas as pd
import pytest
import yaml
from prefect.server.events.schemas.automations import AutomationCore
from prefect.server.events.schemas.events import ReceivedEvent

import flows.benchmark
import tasks.benchmark
from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark.cells import Cell
from customdiff_core.benchmark.outcomes import Outcome
from customdiff_core.benchmark.protocol import load
from customdiff_core.errors import EvaluationError
from customdiff_core.recipes import Recipe
from customdiff_core.settings import REPOSITORY

NIGHT = date(2026, 3, 2)


def benchmark(store: Store, *, outside: bool) -> Artifact:
    """Two nights of one row, the second as told."""
    chart = {"row": "joint", "metric": "text_alignment", "value": 0.2, "low": 0.5, "high": 0.9}

    def produce(folder: Path) -> int:
        marks = [("2026-03-01", True), ("2026-03-02", outside)]
        return tables.write(
            folder / "drift.parquet", pd.DataFrame([chart | {"night": a, "outside": b} for a, b in marks])
        )

    config = {"outside": outside}
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
    tasks.benchmark.announce_outside(benchmark(store, outside=True), load("openmoji-nightly"), NIGHT)
    [(event, content)] = fired
    assert event == "customdiff.benchmark.outside"
    assert content["resource"]["prefect.resource.id"] == "customdiff.benchmark.openmoji-nightly"
    assert content["payload"] == {
        "night": "2026-03-02",
        "what": ["Custom Diffusion, joint: Text alignment 0.200, expected 0.500 to 0.900"],
    }


def outcomes(store: Store, *errors: str) -> tuple[Outcome, ...]:
    """A cell measured, and others that failed."""
    cell = Cell(row="joint", concepts=("cat", "dog"), seed=1)
    return (
        Outcome(cell=cell, made=benchmark(store, outside=False)),
        *(Outcome(cell=cell, error=one) for one in errors),
    )


def test_a_failed_cell_fires_another_and_a_quiet_night_none(store: Store, fired: list[Any]) -> None:
    protocol = load("openmoji-nightly")
    tasks.benchmark.announce_outside(benchmark(store, outside=False), protocol, NIGHT)
    tasks.benchmark.announce_incomplete(outcomes(store), protocol, NIGHT)
    assert fired == []
    tasks.benchmark.announce_incomplete(outcomes(store, "out of memory"), protocol, NIGHT)
    [(event, content)] = fired
    assert event == "customdiff.benchmark.incomplete"
    assert content["payload"]["what"] == ["joint, cat+dog, seed 1: out of memory"]


@pytest.mark.parametrize(("breaks", "told"), [("tabulate", ["incomplete"]), ("report", ["incomplete", "outside"])])
def test_a_night_without_a_table_or_a_page_is_told_of_too(
    store: Store, fired: list[Any], monkeypatch: pytest.MonkeyPatch, breaks: str, told: list[str]
) -> None:
    def broken(*_: object) -> None:
        raise EvaluationError("benchmark: found no cell that was measured")

    monkeypatch.setattr(flows.benchmark, "indexed", lambda *_: None)
    monkeypatch.setattr(flows.benchmark, "measured", lambda *_: outcomes(store, "out of memory"))
    monkeypatch.setattr(tasks.benchmark, "before", lambda *_: ())
    monkeypatch.setattr(tasks.benchmark, "tabulate", lambda *_: benchmark(store, outside=True))
    monkeypatch.setattr(tasks.benchmark, breaks, broken)
    with pytest.raises(EvaluationError):
        flows.benchmark.benchmark.fn("openmoji-nightly", NIGHT)
    assert [event.rpartition(".")[2] for event, _ in fired] == told


def test_the_example_of_automations_hears_of_nights_that_fail_or_do_not_come() -> None:
    text = (REPOSITORY / "deployments" / "automation-drift.yaml").read_text()
    triggers = [AutomationCore.model_validate(one).trigger for one in yaml.safe_load(text)["automations"]]

    def heard(event: str, deployment: str) -> list[str]:
        related = [
            {"prefect.resource.id": "x", "prefect.resource.role": "deployment", "prefect.resource.name": deployment}
        ]
        resource = {"prefect.resource.id": "prefect.flow-run.1"}
        one = ReceivedEvent(occurred=datetime.now(UTC), event=event, resource=resource, related=related, id=uuid4())
        return [str(trigger.posture.value) for trigger in triggers if trigger.covers(one) and trigger.expects(event)]

    assert heard("prefect.flow-run.Failed", "nightly") == heard("prefect.flow-run.Crashed", "nightly") == ["Reactive"]
    assert heard("prefect.flow-run.Completed", "nightly") == ["Proactive"]
    assert heard("prefect.flow-run.Failed", "cat") == heard("prefect.flow-run.Completed", "quick") == []
    assert next(one.within for one in triggers if one.posture.value == "Proactive") == timedelta(hours=26)


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
