"""What the server must know before a run: the work pool, the concurrency limits and the deployments of prefect.yaml."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Crashed
from prefect.variables import Variable

from customdiff_core.errors import ServiceError
from customdiff_core.settings import REPOSITORY, Settings
from deployments.processes import flow_runs

PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
POOL = "local-process"
WORKER = "local"  # what the stack's own is called
TAKEN_BY = "prefect.worker.name"  # the label that a worker gives to the run that it takes
OUR_POOL = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
SLOTS = {"gpu": 1}  # global concurrency limits
DEPLOYED = "customdiff_deployed"  # the Prefect variable that says which code the deployments were made from
DECLARED = "customdiff_declared"  # that which says what prefect.yaml declared
DECLARING = ("prefect.yaml", "flows/*.py", "tasks/*.py", "customdiff_core/**/*.py", "deployments/**/*.y*ml")
DEPLOY_SECONDS = 300.0
MISSED = timedelta(hours=1)  # after which a scheduled run is none of what somebody waits for


def prepare(client: SyncPrefectClient) -> None:
    """Make the work pool and the concurrency limits; what a user changed in the UI stays."""
    with suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    known = {limit.name for limit in client.read_global_concurrency_limits()}
    for name, slots in SLOTS.items():
        if name not in known:
            client.upsert_global_concurrency_limit_by_name(name, slots)


def deploy(client: SyncPrefectClient, log: Path, say: Callable[[str], None]) -> None:
    """Deploy prefect.yaml when the code that declares it, or the place of the checkout, is not what was deployed.

    What somebody switched on or off on the server stays so, until prefect.yaml itself says another thing of it than before.

    Raises:
        ServiceError: if Prefect refuses.
    """
    declared = declared_deployments()
    version = code_version()
    before = registered(client)
    if Variable.get(DEPLOYED) == version and declared.keys() <= before.keys():
        return
    ours = _deployed_before()  # what somebody deployed beside is theirs
    say("deploying the flows of prefect.yaml")
    log.parent.mkdir(parents=True, exist_ok=True)
    code: int | str = "unfinished"
    try:
        with log.open("wb") as file, suppress(subprocess.TimeoutExpired):
            command = (*PREFECT, "deploy", "--all")
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False, timeout=DEPLOY_SECONDS
            ).returncode
    finally:  # broken off, too: the next time nobody would know how they were
        unchanged = [name for name, active in declared.items() if ours.get(name) in (None, active)]
        _switch_back(client, {name: before[name] for name in unchanged if name in before})
    missing = declared.keys() - registered(client).keys()
    if code != 0 or missing:
        found = f"exit {code}" + (f" and no {', '.join(sorted(missing))}" if missing else "")
        raise ServiceError(f"deployments: found {found} from `prefect deploy --all`, need all deployed; read {log}")
    for name, deployment in registered(client).items():
        if name in ours.keys() - declared.keys() and _active(deployment):
            _switch(client, deployment, active=False)
            say(f"{name}: no longer in prefect.yaml; its schedule is paused")
    Variable.set(DECLARED, json.dumps(declared, sort_keys=True), overwrite=True)
    Variable.set(DEPLOYED, version, overwrite=True)


def drop_missed(client: SyncPrefectClient, say: Callable[[str], None]) -> None:
    """Delete the runs that were missed while nothing was up, or the machine slept: they would come before what one asks for.

    One that waits its turn behind a run which began, or was asked for, before it is none of them.
    """
    latest: Any = datetime.now(UTC) - MISSED  # Prefect annotates a type of its own, and takes any
    overdue = FlowRunFilterNextScheduledStartTime(before_=latest)
    # A run that somebody asked for is in the way since then; one of a schedule that was late, since it began.
    working = [run.start_time if run.auto_scheduled else run.expected_start_time for run in in_progress(client)]
    since = min((one for one in working if one), default=None)
    missed = [
        run
        for run in client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                next_scheduled_start_time=overdue,
            ),
            work_pool_filter=OUR_POOL,
        )
        # one that began, and is to be tried again, is somebody's wish
        if run.auto_scheduled and not run.run_count and not (since and since < (run.expected_start_time or since))
    ]
    for run in missed:
        client.delete_flow_run(run.id)
    if missed:
        say(f"{len(missed)} scheduled runs were missed while nothing was up: not made up for")


def in_progress(client: SyncPrefectClient) -> list[FlowRun]:
    """The runs that workers of the pool compute now."""
    running = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
    return client.read_flow_runs(flow_run_filter=FlowRunFilter(state=running), work_pool_filter=OUR_POOL)


def _deployed_before() -> dict[str, bool | None]:
    """What prefect.yaml declared when it was deployed last, as `declared_deployments`; None where that was not noted."""
    noted = json.loads(str(Variable.get(DECLARED) or "{}"))
    return noted if isinstance(noted, dict) else dict.fromkeys(noted)


def _active(deployment: DeploymentResponse) -> bool:
    return any(one.active for one in deployment.schedules)


def _switch(
    client: SyncPrefectClient, deployment: DeploymentResponse, *, active: bool, was: Mapping[str, bool] = {}
) -> None:
    """Set each schedule to what it was, and to `active` where that is not known."""
    for one in deployment.schedules:
        wanted = was.get(str(one.schedule), active)
        if one.active != wanted:
            client.update_deployment_schedule(deployment.id, one.id, active=wanted)


def _switch_back(client: SyncPrefectClient, before: Mapping[str, DeploymentResponse]) -> None:
    """Set the switches of deployments and schedules as they were: `prefect deploy` sets all of them by prefect.yaml.

    A schedule that somebody deleted is made again, and paused.
    """
    for name, deployment in registered(client).items():
        if name in before:
            was = {str(one.schedule): one.active for one in before[name].schedules}
            _switch(client, deployment, active=_active(before[name]), was=was)
            if before[name].paused:
                client.pause_deployment(deployment.id)


def registered(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """What the server has, by "<flow>/<deployment>"."""
    flows = {flow.id: flow.name for flow in client.read_flows()}
    return {f"{flows.get(one.flow_id)}/{one.name}": one for one in client.read_deployments()}


def declared_deployments() -> dict[str, bool]:
    """What prefect.yaml declares: by "<flow>/<deployment>", whether it has a schedule that is active.

    Raises:
        ServiceError: if it is not there, or not as Prefect wants it.
    """
    path = REPOSITORY / "prefect.yaml"
    if not path.is_file():
        raise ServiceError(f"prefect.yaml: found none in {REPOSITORY}, need the deployments it declares; check it out")
    try:
        declared = yaml.safe_load(path.read_text())["deployments"]
        # A flow is called as its function, with hyphens.
        return {
            f"{one['entrypoint'].rsplit(':', 1)[1].replace('_', '-')}/{one['name']}": any(
                schedule.get("active", True) for schedule in one.get("schedules") or ()
            )
            for one in declared
        }
    except (yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        raise ServiceError(
            f"{path}: found {type(error).__name__} ({' '.join(str(error).split())}), need deployments, each with a name and an "
            "entrypoint; correct it"
        ) from error


def code_version() -> str:
    """Digest of what the deployments are made from: the declaring files, the concepts on offer, the checkout's path."""
    paths = sorted(path for pattern in DECLARING for path in REPOSITORY.glob(pattern))
    concepts = sorted(path.parent.name for path in (Settings().data / "concepts").glob("*/concept.yaml"))
    digest = hashlib.sha256("\0".join([str(REPOSITORY), *concepts]).encode())
    for path in paths:
        digest.update(path.relative_to(REPOSITORY).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def bury(client: SyncPrefectClient, home: Path) -> None:
    """Mark runs as crashed that this stack's worker took and no process computes; `prefect flow-run retry` resumes them.

    Those of other workers of the pool, on this machine or another, are theirs to end.
    """
    alive = {UUID(run_id) for run_id, _ in flow_runs(home)}
    busy = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    for run in client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=busy)), work_pool_filter=OUR_POOL
    ):
        if run.id not in alive and run.labels.get(TAKEN_BY, WORKER) == WORKER:
            state = Crashed(message="Its process is gone: the worker or the machine was stopped.")
            client.set_flow_run_state(run.id, state, force=True)
