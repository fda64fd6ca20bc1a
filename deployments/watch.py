"""Start a deployment run and follow it, a line a stage: what a person wants to read while waiting."""

import json
import re
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from customdiff_core.errors import ServiceError
from deployments.registration import in_progress, registered

POLL_SECONDS = 1.0
CHECK_SECONDS = 30.0
PREFECTS_OWN = re.compile("-[0-9a-f]{3}$")

Say = Callable[[str], None]


def start(client: SyncPrefectClient, deployment: str, parameters: list[str]) -> FlowRun:
    """Create a run of "<flow>/<deployment>".

    Args:
        client: of the local server.
        deployment: its name.
        parameters: "name=value" each, the value in JSON, or plain text.

    Raises:
        ServiceError: for an unknown deployment, or parameters that its form refuses.
    """
    try:
        found = client.read_deployment_by_name(deployment)
    except (ObjectNotFound, ValueError) as error:  # or no <flow>/<deployment>
        known = ", ".join(sorted(registered(client)))
        raise ServiceError(f"deployment: found no {deployment}, need one of {known}") from error
    values = dict(_parameter(text) for text in parameters)
    try:
        return client.create_flow_run_from_deployment(found.id, parameters=values)
    except PrefectHTTPStatusError as error:
        detail = error.response.json().get("detail", error.response.text)
        raise ServiceError(f"{deployment}: found parameters that its form refuses: {detail}; correct them") from error


def follow(
    client: SyncPrefectClient, run: UUID, seconds: float, say: Say, now: Say, check: Callable[[], None] = lambda: None
) -> FlowRun:
    """Wait for a run's end, telling each stage's state once it has one.

    Args:
        client: of the local server.
        run: which.
        seconds: how long to wait.
        say: given a line for every finished stage.
        now: given a short text about what is going on.
        check: called now and then while nobody has taken the run up; raises where nobody will.

    Raises:
        ServiceError: when the time is over; the run goes on.
    """
    told: set[UUID] = set()
    deadline = time.monotonic() + seconds
    check_at = time.monotonic() + CHECK_SECONDS
    while time.monotonic() < deadline:
        flow_run = client.read_flow_run(run)
        stages = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
        for stage in sorted(stages, key=lambda one: str(one.end_time)):
            if stage.state and stage.state.is_final() and stage.id not in told:
                told.add(stage.id)
                say(_line(stage))
        if flow_run.state and flow_run.state.is_final():
            return flow_run
        if flow_run.state and flow_run.state.is_running():
            check_at = time.monotonic() + CHECK_SECONDS
        elif time.monotonic() > check_at:
            check()
            check_at = time.monotonic() + CHECK_SECONDS
        working = [stage_name(one.name) for one in stages if one.state and not one.state.is_final()]
        now(f"{' and '.join(working) or _waiting(client, flow_run)} ...")
        time.sleep(POLL_SECONDS)
    raise ServiceError(
        f"flow run {run}: found it unfinished after {seconds:.0f} s, need it finished; it goes on: see the UI"
    )


def _waiting(client: SyncPrefectClient, run: FlowRun) -> str:
    """What a run waits for that has no stage at work: the worker takes so many runs at a time."""
    if run.state and run.state.is_running():
        return "about to start a stage"
    others = " and ".join(one.name for one in in_progress(client) if one.id != run.id)
    return f"waiting for the worker{f', which runs {others}' if others else ''}"


def _parameter(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found:
        raise ServiceError(f"parameter: found {text!r}, need name=value, such as concept=dog")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def stage_name(name: str) -> str:
    """A task run's name without what Prefect adds to a task's own: "evaluate-3f0" is evaluate, "fine-tune-all cat" all of it."""
    return PREFECTS_OWN.sub("", name)


def _line(stage: TaskRun) -> str:
    seconds = stage.total_run_time.total_seconds()
    state = stage.state.name if stage.state else ""
    return f"  {(state or '').lower():10} {seconds:6.1f} s  {stage_name(stage.name)}"
