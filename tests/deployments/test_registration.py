"""What the server is told of prefect.yaml, with a server that remembers."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType

from customdiff_core.errors import ServiceError
from customdiff_core.settings import REPOSITORY
from deployments import registration
from deployments.registration import DECLARING, bury, declared_deployments, deploy, drop_missed, registered


class Server:
    """Deployments by name, each with whether its schedule is active; deploying makes every schedule anew."""

    def __init__(self, there: dict[str, bool | None], *paused: str) -> None:
        self.there = there
        self.paused = set(paused)
        self.switched: list[tuple[str, bool]] = []
        self.names = sorted({name.split("/")[0] for name in (*declared_deployments(), *there)})

    def read_flows(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=number, name=name) for number, name in enumerate(self.names)]

    def read_deployments(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                id=name,
                name=name.split("/")[1],
                flow_id=self.names.index(name.split("/")[0]),
                work_pool_name="local-process",
                paused=name in self.paused,
                schedules=[] if active is None else [SimpleNamespace(id="schedule", schedule="03:00", active=active)],
            )
            for name, active in self.there.items()
        ]

    def update_deployment_schedule(self, deployment: str, schedule: str, active: bool) -> None:
        assert schedule == "schedule"
        self.there[deployment] = active
        self.switched.append((deployment, active))

    def pause_deployment(self, deployment: str) -> None:
        self.paused.add(deployment)


def deployed(
    server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: str = "",
    ends: BaseException | None = None,
    noted: object = ("benchmark/weekly",),
    active: bool = True,
) -> list[str]:
    """Deploy a nightly benchmark whose schedule prefect.yaml says is active, or not; return what was said."""
    said: list[str] = []
    declared = declared_deployments() | {"benchmark/nightly": active}

    def run(*_: object, **__: object) -> SimpleNamespace:
        server.there |= {name: active if "nightly" in name else None for name in declared if name != refused}
        server.paused.clear()  # so does `prefect deploy`
        if ends:
            raise ends
        return SimpleNamespace(returncode=0)

    variables = {registration.DECLARED: json.dumps(noted)}
    monkeypatch.setattr(registration, "declared_deployments", lambda: declared)
    monkeypatch.setattr(registration.subprocess, "run", run)
    monkeypatch.setattr(
        registration,
        "Variable",
        SimpleNamespace(get=variables.get, set=lambda name, value, overwrite: variables.update({name: value})),
    )
    deploy(server, tmp_path / "deploy.log", said.append)
    assert json.loads(variables[registration.DECLARED]) == declared
    return said


def test_every_deployment_is_known_by_its_flow_too() -> None:
    declared = declared_deployments()
    assert {"customize/cat", "evaluate/stage", "build-own-index/folder", "benchmark/nightly"} <= declared.keys()
    assert len([name for name in declared if name.endswith("/stage")]) == 6
    assert registered(Server(dict.fromkeys(declared))).keys() == declared.keys()  # pyright: ignore[reportArgumentType]


def test_a_schedule_that_somebody_paused_stays_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server({"benchmark/nightly": False, "benchmark/quick": None})
    assert deployed(server, tmp_path, monkeypatch) == ["deploying the flows of prefect.yaml"]
    assert server.switched == [("benchmark/nightly", False)]
    broken = Server({"benchmark/nightly": False})
    with pytest.raises(KeyboardInterrupt):
        deployed(broken, tmp_path, monkeypatch, ends=KeyboardInterrupt())
    assert broken.switched == [("benchmark/nightly", False)]
    slow = Server({"benchmark/nightly": False})
    with pytest.raises(ServiceError, match="found exit unfinished from `prefect deploy --all`"):
        deployed(slow, tmp_path, monkeypatch, ends=subprocess.TimeoutExpired("prefect", 300))
    assert slow.switched == [("benchmark/nightly", False)]
    running = Server({"benchmark/nightly": True})
    deployed(running, tmp_path, monkeypatch)
    assert running.switched == []


def test_a_deployment_that_somebody_paused_stays_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch of the deployment in the UI; its schedules stay active."""
    server = Server({"benchmark/nightly": True, "customize/cat": None}, "benchmark/nightly")
    deployed(server, tmp_path, monkeypatch)
    assert server.paused == {"benchmark/nightly"}
    assert server.there["benchmark/nightly"]


def test_of_several_schedules_each_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switched: list[tuple[str, bool]] = []
    nightly, noon = ({"id": name, "schedule": name} for name in ("03:00", "12:00"))

    class Two(Server):
        def read_deployments(self) -> list[SimpleNamespace]:
            found = super().read_deployments()
            active = not self.paused  # `prefect deploy` switches all on
            for one in found:
                if one.name == "nightly":
                    one.schedules = [SimpleNamespace(**noon, active=active), SimpleNamespace(**nightly, active=True)]
            return found

        def update_deployment_schedule(self, deployment: str, schedule: str, active: bool) -> None:
            switched.append((schedule, active))

    server = Two({"benchmark/nightly": True}, "customize/cat")
    deployed(server, tmp_path, monkeypatch)
    assert switched == [("12:00", False)]


def test_a_schedule_that_somebody_deleted_comes_back_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server({"benchmark/nightly": None})
    deployed(server, tmp_path, monkeypatch)
    assert server.there["benchmark/nightly"] is False


def test_a_schedule_that_somebody_switched_on_stays_on_until_prefect_yaml_changes_its_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server({"benchmark/nightly": True})
    deployed(server, tmp_path, monkeypatch, active=False)
    assert server.there["benchmark/nightly"] is True
    deployed(server, tmp_path, monkeypatch, active=False, noted={"benchmark/nightly": False})
    assert server.there["benchmark/nightly"] is True
    deployed(server, tmp_path, monkeypatch, active=False, noted={"benchmark/nightly": True})
    assert server.there["benchmark/nightly"] is False
    deployed(server, tmp_path, monkeypatch, active=True, noted={"benchmark/nightly": False})
    assert server.there["benchmark/nightly"] is True
    new = Server({})
    deployed(new, tmp_path, monkeypatch)
    assert new.there["benchmark/nightly"] is True


def test_a_deployment_that_is_no_longer_declared_runs_no_more_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for noted in (["benchmark/weekly"], {"benchmark/weekly": True}):
        server = Server({"benchmark/weekly": True, "benchmark/mine": True})
        said = deployed(server, tmp_path, monkeypatch, noted=noted)
        assert server.switched == [("benchmark/weekly", False)]
        assert said[-1] == "benchmark/weekly: no longer in prefect.yaml; its schedule is paused"


@pytest.mark.parametrize(
    "text",
    [
        "deployments: [",
        "deployments:\n- name: cat\n",
        "flows: []",
        "deployments: [{name: a, entrypoint: b}]",
        "deployments: [{name: a, entrypoint: 'b:c', schedules: [daily]}]",
    ],
)
def test_a_slip_in_prefect_yaml_is_said(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prefect.yaml").write_text(text)
    monkeypatch.setattr(registration, "REPOSITORY", tmp_path)
    with pytest.raises(
        ServiceError, match=r"prefect\.yaml: found \w+ .*need deployments, each with a name and an entrypoint"
    ):
        declared_deployments()


OURS = {"prefect.worker.name": "local"}


class Runs:
    """A server's flow runs: what it was asked for, and what it was told of them."""

    def __init__(self, *runs: SimpleNamespace, computing: tuple[SimpleNamespace, ...] = ()) -> None:
        self.runs, self.computing = runs, computing
        self.asked: list[Any] = []
        self.deleted: list[UUID] = []
        self.crashed: list[UUID] = []

    def read_flow_runs(self, *, flow_run_filter: Any, work_pool_filter: Any) -> tuple[SimpleNamespace, ...]:
        assert work_pool_filter.name.any_ == ["local-process"]
        if flow_run_filter.state.type.any_ == [StateType.RUNNING]:
            return self.computing
        self.asked.append(flow_run_filter)
        return self.runs

    def delete_flow_run(self, run: UUID) -> None:
        self.deleted.append(run)

    def set_flow_run_state(self, run: UUID, state: Any, force: bool) -> None:
        assert force
        assert state.is_crashed()
        self.crashed.append(run)


def overdue(**changed: Any) -> SimpleNamespace:
    """A scheduled run that should have begun two hours ago."""
    moment = datetime.now(UTC) - timedelta(hours=2)
    return SimpleNamespace(
        **{"id": uuid4(), "auto_scheduled": True, "run_count": 0, "expected_start_time": moment} | changed
    )


def test_what_a_schedule_planned_while_nothing_was_up_is_not_made_up_for() -> None:
    """A machine that was off for the weekend would spend hours on missed nights before what somebody asks for."""
    night, asked_for, again = (
        overdue(),
        overdue(auto_scheduled=False),
        overdue(run_count=1),
    )  # the last retried by somebody
    server, said = Runs(night, asked_for, again), list[str]()
    drop_missed(server, said.append)  # pyright: ignore[reportArgumentType]
    assert server.deleted == [night.id]
    assert said == ["1 scheduled runs were missed while nothing was up: not made up for"]
    (asked,) = server.asked
    assert asked.state.type.any_ == [StateType.SCHEDULED]
    ago = datetime.now(UTC) - asked.next_scheduled_start_time.before_
    assert timedelta(minutes=59) < ago < timedelta(minutes=61)


def test_a_night_that_waits_its_turn_behind_a_long_run_is_not_missed() -> None:
    """And one that a sleeping machine missed is, though the one before it computes by now."""
    began = (datetime.now(UTC) - timedelta(hours=hours) for hours in (3, 1))
    due = datetime.now(UTC) - timedelta(hours=9)
    before, after = (SimpleNamespace(start_time=at, expected_start_time=due, auto_scheduled=True) for at in began)
    asked_for = SimpleNamespace(start_time=after.start_time, expected_start_time=due, auto_scheduled=False)
    waiting, missed, behind = (Runs(overdue(), computing=(one,)) for one in (before, after, asked_for))
    for server in (waiting, missed, behind):
        drop_missed(server, print)  # pyright: ignore[reportArgumentType]
    assert waiting.deleted == behind.deleted == []
    assert missed.deleted == [missed.runs[0].id]


def test_runs_whose_process_is_gone_are_crashed_and_those_that_compute_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, computing, unsaid = (SimpleNamespace(id=uuid4(), labels=labels) for labels in (OURS, OURS, {}))
    of_another = SimpleNamespace(id=uuid4(), labels={"prefect.worker.name": "ProcessWorker 3f0"})
    monkeypatch.setattr(registration, "flow_runs", lambda home: [(str(computing.id), None)] if home == tmp_path else [])
    server = Runs(gone, computing, unsaid, of_another)
    bury(server, tmp_path)  # pyright: ignore[reportArgumentType]
    assert server.crashed == [gone.id, unsaid.id]
    assert StateType.SCHEDULED not in server.asked[0].state.type.any_


def test_one_of_six_stages_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceError, match="found exit 0 and no evaluate/stage"):
        deployed(Server({}), tmp_path, monkeypatch, refused="evaluate/stage")


def test_a_new_method_is_a_reason_to_deploy() -> None:
    seen = {path for pattern in DECLARING for path in REPOSITORY.glob(pattern)}
    assert REPOSITORY / "customdiff_core" / "finetuning" / "methods" / "base.py" in seen
