"""What a person reads while a run goes on: every stage by its whole name."""

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.states import Completed, Pending, Running, Scheduled

from customdiff_core.errors import ServiceError
from deployments import watch
from deployments.watch import follow, stage_name, start


@pytest.mark.parametrize(
    "name", ["textual-inversion cat at 0.25 of the steps, seed 2026112800", "custom-diffusion cat", "judge"]
)
def test_a_name_that_a_task_gives_its_run_is_told_whole(name: str) -> None:
    assert stage_name(name) == name


def test_prefects_own_suffix_is_not_told() -> None:
    assert stage_name("build-index-3f0") == "build-index"


class Client:
    """A run that is in one state after the other."""

    def __init__(self, *states: Any, computing: tuple[SimpleNamespace, ...] = ()) -> None:
        self.states, self.computing = list(states), computing

    def read_flow_run(self, run: object) -> SimpleNamespace:
        return SimpleNamespace(id=run, state=self.states.pop(0))

    def read_flow_runs(self, **_: object) -> tuple[SimpleNamespace, ...]:
        return self.computing

    def read_task_runs(self, **_: object) -> list[SimpleNamespace]:
        return []

    def read_deployment_by_name(self, name: str) -> None:
        flow, deployment = name.split("/")
        raise AssertionError(flow + deployment)

    def read_flows(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=1, name="customize")]

    def read_deployments(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(flow_id=1, name="cat")]


def no_worker() -> None:
    raise ServiceError("worker: found none online for pool local-process, need one; run `make up`")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0)
    monkeypatch.setattr(watch, "CHECK_SECONDS", -1)  # due at every look


def test_a_run_that_no_worker_will_take_up_is_not_waited_for() -> None:
    client: Any = Client(Scheduled(), Pending())
    with pytest.raises(ServiceError, match="worker: found none online"):
        follow(client, uuid4(), 60, print, print, no_worker)


def test_a_run_that_computes_is_waited_for_whatever_the_worker_does() -> None:
    client: Any = Client(Running(), Running(), Completed())
    done = follow(client, uuid4(), 60, print, print, no_worker)
    assert done.state
    assert done.state.is_completed()


def test_the_run_that_one_waits_behind_is_named() -> None:
    run, told = uuid4(), list[str]()
    night = SimpleNamespace(id=uuid4(), name="benchmark-openmoji-nightly")
    client: Any = Client(Scheduled(), Running(), Completed(), computing=(night, SimpleNamespace(id=run, name="mine")))
    follow(client, run, 60, print, told.append)
    assert told == ["waiting for the worker, which runs benchmark-openmoji-nightly ...", "about to start a stage ..."]


def test_a_name_without_a_flow_is_no_deployment() -> None:
    client: Any = Client()
    with pytest.raises(ServiceError, match="deployment: found no cat, need one of customize/cat"):
        start(client, "cat", [])
