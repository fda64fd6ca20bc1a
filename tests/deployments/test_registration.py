"""What the server is told of prefect.yaml, with a server that remembers."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from customdiff_core.errors import ServiceError
from customdiff_core.settings import REPOSITORY
from deployments import registration
from deployments.registration import DECLARING, declared_deployments, deploy, registered


class Server:
    """Deployments by name, each with whether its schedule is active; deploying makes every schedule anew."""

    def __init__(self, there: dict[str, bool | None]) -> None:
        self.there = there
        self.paused: list[str] = []
        self.names = sorted({name.split("/")[0] for name in declared_deployments()})

    def read_flows(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=number, name=name) for number, name in enumerate(self.names)]

    def read_deployments(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                id=name,
                name=name.split("/")[1],
                flow_id=self.names.index(name.split("/")[0]),
                schedules=[] if active is None else [SimpleNamespace(id="schedule", active=active)],
            )
            for name, active in self.there.items()
        ]

    def update_deployment_schedule(self, deployment: str, schedule: str, active: bool) -> None:
        assert (schedule, active) == ("schedule", False)
        self.paused.append(deployment)


def deployed(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str = "", ends: BaseException | None = None
) -> list[str]:
    """Deploy; return what was said."""
    said: list[str] = []

    def run(*_: object, **__: object) -> SimpleNamespace:
        server.there |= {name: "nightly" in name or None for name in declared_deployments() if name != refused}
        if ends:
            raise ends
        return SimpleNamespace(returncode=0)

    variables: dict[str, str] = {}
    monkeypatch.setattr(registration.subprocess, "run", run)
    monkeypatch.setattr(
        registration, "Variable", SimpleNamespace(get=variables.get, set=lambda name, value, overwrite: None)
    )
    deploy(server, tmp_path / "deploy.log", said.append)
    return said


def test_every_deployment_is_known_by_its_flow_too() -> None:
    declared = declared_deployments()
    assert {"customize/cat", "evaluate/stage", "build-own-index/folder", "benchmark/nightly"} <= declared
    assert len([name for name in declared if name.endswith("/stage")]) == 6
    assert set(registered(Server(dict.fromkeys(declared)))) == declared  # pyright: ignore[reportArgumentType]


def test_a_schedule_that_somebody_paused_stays_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server({"benchmark/nightly": False, "benchmark/quick": None})
    assert deployed(server, tmp_path, monkeypatch) == ["deploying the flows of prefect.yaml"]
    assert server.paused == ["benchmark/nightly"]
    broken = Server({"benchmark/nightly": False})
    with pytest.raises(KeyboardInterrupt):
        deployed(broken, tmp_path, monkeypatch, ends=KeyboardInterrupt())
    assert broken.paused == ["benchmark/nightly"]
    slow = Server({"benchmark/nightly": False})
    with pytest.raises(ServiceError, match="found exit unfinished from `prefect deploy --all`"):
        deployed(slow, tmp_path, monkeypatch, ends=subprocess.TimeoutExpired("prefect", 300))
    assert slow.paused == ["benchmark/nightly"]
    running = Server({"benchmark/nightly": True})
    deployed(running, tmp_path, monkeypatch)
    assert running.paused == []


def test_one_of_six_stages_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceError, match="found exit 0 and no evaluate/stage"):
        deployed(Server({}), tmp_path, monkeypatch, refused="evaluate/stage")


def test_a_new_method_is_a_reason_to_deploy() -> None:
    seen = {path for pattern in DECLARING for path in REPOSITORY.glob(pattern)}
    assert REPOSITORY / "customdiff_core" / "finetuning" / "methods" / "base.py" in seen
