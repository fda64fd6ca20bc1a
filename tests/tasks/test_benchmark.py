from datetime import date
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
