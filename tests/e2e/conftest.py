"""The real thing for e2e tests: a server, a pool, a worker and deployments of their own, beside whatever runs here."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest
from xdist.scheduler import LoadScopeScheduling

from customdiff_core.artifacts import Store
from deployments.watch import stage_name

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[2]
FINISHED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
SMALL: dict[str, Any] = {
    "train": {"steps": 12, "batch_size": 2},
    "evaluate": {
        "prompts": ["a crying {}", "a {} on a red background", "a {} and a rocket"],
        "seeds": 2,
        "kid_images": 12,
        "sample": {"steps": 4, "guidance_scale": 4},
    },
}
BRIEF = SMALL | {"train": {"steps": 4, "batch_size": 2}}  # where it is not the training that is tested
SECOND = {"test_compose.py", "test_pretrain.py", "test_retrieval.py"}  # share the second of two workers' stack
PATIENCE = 1800  # seconds until a wait is a hang: a busy machine may need ten times what an idle one does


class ByStack(LoadScopeScheduling):
    """All tests of one stack to one worker: a stack, and the first run on it, is what takes long."""

    def _split_scope(self, nodeid: str) -> str:
        return "second" if Path(nodeid.partition("::")[0]).name in SECOND else "first"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByStack:
    """Called by xdist on the side that gives the tests out."""
    return ByStack(config, log)


@dataclass
class Stack:
    """A local stack on free ports, its state in a temporary folder."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        port, files_port = _free_ports(2)
        self.files_url = f"http://127.0.0.1:{files_port}"
        self.ui_url = f"http://127.0.0.1:{port}"
        self.environment = os.environ | {
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_API_URL": f"{self.ui_url}/api",
            "CUSTOMDIFF_STORE": str(self.folder / "store"),
            "CUSTOMDIFF_FILES_URL": self.files_url,
            "CUSTOMDIFF_WORKER_LIMIT": "2",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",  # a new schedule's runs appear at once
            "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "2",  # a killed run's slot is free when its lease ends
            "PREFECT_WORKER_QUERY_SECONDS": "0.5",
            "CUSTOMDIFF_ALLOW_LOOPBACK": "true",  # the tests' web is this machine
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self.api = httpx.Client(base_url=f"{self.ui_url}/api/", timeout=120)  # two cores have other work

    @property
    def store(self) -> Store:
        """The store that the stack's runs share."""
        return Store(self.folder / "store")

    def local(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m deployments.local ...`, as the Makefile does."""
        return self.command(sys.executable, "-m", "deployments.local", *arguments)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the repository against this stack."""
        return subprocess.run(
            arguments,
            cwd=REPOSITORY,
            env=self.environment,
            text=True,
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )

    def start(self, deployment: str, **parameters: Any) -> str:
        """Create a run of "flow/deployment"; return its id."""
        found = self.post(f"deployments/name/{deployment}", method="GET")
        return self.post(f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"]

    def run(self, deployment: str, **parameters: Any) -> dict[str, Any]:
        """Create a run, wait for its end, and expect it to be completed."""
        finished = self.wait(self.start(deployment, **parameters))
        assert finished["state_type"] == "COMPLETED", finished["state"]["message"]
        return finished

    def wait(self, run: str, states: set[str] = FINISHED) -> dict[str, Any]:
        """Wait until a flow run is in one of the states."""

        def found() -> dict[str, Any] | None:
            now = self.post(f"flow_runs/{run}", method="GET")
            return now if now["state_type"] in states else None

        return until(found, f"flow run {run} to be one of {sorted(states)}")

    def pause_schedules(self) -> None:
        """Let nothing start by the clock: a suite that runs at night does not begin a night."""
        for deployment in self.post("deployments/filter", {"limit": 100}):
            for schedule in deployment["schedules"]:
                path = f"deployments/{deployment['id']}/schedules/{schedule['id']}"
                self.post(path, {"active": False}, method="PATCH")

    def newest_run(self) -> dict[str, Any]:
        """The flow run that started last; what a schedule has only planned is none."""
        started = {"flow_runs": {"start_time": {"is_null_": False}}}
        return self.post("flow_runs/filter", started | {"sort": "START_TIME_DESC", "limit": 1})[0]

    def task_states(self, run: str) -> dict[str, str]:
        """The final states' names by task, such as {"retrieve": "Cached"}; the server learns some after the flow run's own."""

        def finished() -> list[dict[str, Any]] | None:
            tasks = self.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
            return tasks if all(task["state_type"] in FINISHED for task in tasks) else None

        tasks = until(finished, f"the tasks of flow run {run} to be finished")
        return {stage_name(task["name"]): task["state_name"] for task in tasks}

    def artifacts(self, run: str) -> dict[str, str]:
        """The UI artifacts of a run: their text by key."""
        wanted = {"artifacts": {"flow_run_id": {"any_": [run]}}, "limit": 100}
        return {one["key"]: str(one["data"]) for one in self.post("artifacts/filter", wanted)}

    def post(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """Ask the server's API; like Prefect's own client, again when its database is busy (503)."""
        for pause in (0.5, 1, 2, 4, 8, 0):
            answer = self.api.request(method, path, json=body)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(pause)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def assert_said(self, run: str, words: str) -> None:
        """Wait until the run's log holds the words: Prefect sends the last lines some seconds after the state."""
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200, "sort": "TIMESTAMP_DESC"}
        until(
            lambda: any(words in line["message"] for line in self.post("logs/filter", wanted)),
            f"the log line {words!r}",
        )

    def engines(self, run: str) -> list[psutil.Process]:
        """The processes that execute a flow run."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                if run in process.environ().get("PREFECT__FLOW_RUN_ID", "") and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found


def until(found: Callable[[], T | None], what: str) -> T:
    """Ask until the answer is something; fail with what was waited for when even a busy machine would have had it."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := found()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {PATIENCE} s for {what}")
        time.sleep(0.3)
    return answer


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack; stopped at the end, and its processes with it."""
    one = Stack(tmp_path_factory.mktemp("stack"))
    started = one.local("up")
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        one.pause_schedules()
        yield one
    finally:
        one.api.close()
        stopped = one.local("down")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr


@pytest.fixture(scope="session")
def first_run(stack: Stack) -> dict[str, Any]:
    """One small `customize/cat` on a cold store."""
    return stack.run("customize/cat", **SMALL)


def _free_ports(count: int) -> list[int]:
    """Ports below those that the system gives away, so that a stopped server finds its own again; other workers' are others."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + 1_000 * worker + os.getpid() % 900
    return [port for port in range(first, 20_000 + 1_000 * (worker + 1)) if _is_free(port)][:count]


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return one.connect_ex(("127.0.0.1", port)) != 0
