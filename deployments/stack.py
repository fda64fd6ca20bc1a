"""The local stack: Prefect's server, the store's file server, the work pool, the deployments and a worker.

`up` may be called at any time: it starts what is missing, replaces what is dead, deaf or has other settings, and leaves
the rest alone. All state lies under PREFECT_HOME, so that several stacks live side by side on other ports.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from filelock import FileLock, Timeout
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import WorkerStatus
from prefect.settings import get_current_settings
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from customdiff_core.errors import ServiceError
from customdiff_core.settings import Settings
from deployments.files import LOOPBACK
from deployments.processes import Service, flow_runs, require_free, stop
from deployments.registration import POOL, PREFECT, WORKER, bury, deploy, drop_missed, prepare

# The variables that choose where a service listens.
ADDRESSES = {"server": "PREFECT_SERVER_API_PORT and PREFECT_API_URL", "file-server": "CUSTOMDIFF_FILES_URL"}

START_SECONDS = 120.0
DEAF_SECONDS = 60.0  # how long a running service may stay silent before it is replaced
UP_SECONDS = 600.0

Say = Callable[[str], None]


class WorkerSettings(BaseSettings):
    """What is ours to choose of the worker; the server's host, port and home are Prefect's own settings."""

    model_config = SettingsConfigDict(env_prefix="CUSTOMDIFF_WORKER_", frozen=True)

    limit: int = Field(default=1, ge=1, description="flow runs at a time; the GPU slot holds whatever this says")


@dataclass(frozen=True)
class Stack:
    """The services of one PREFECT_HOME, and the addresses they answer at."""

    home: Path
    ui_url: str
    files_url: str
    server: Service
    files: Service
    worker: Service

    @property
    def api_url(self) -> str:
        """Where Prefect's clients talk to the server."""
        return f"{self.ui_url}/api"

    @property
    def services(self) -> tuple[Service, ...]:
        """In the order in which they start."""
        return self.server, self.files, self.worker

    def up(self, say: Say) -> None:
        """Bring everything up; nothing happens where it is already.

        Raises:
            ServiceError: saying what is in the way.
        """
        lock = self.home / "run" / "up.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=UP_SECONDS):
                self._listen(self.server, self.ui_url, self.is_healthy, say)
                self._listen(self.files, self.files_url, self.serves_files, say)
                with get_client(sync_client=True) as client:
                    prepare(client)
                    deploy(client, self.home / "logs" / "deploy.log", say)
                    self._work(client, say)
        except Timeout as error:
            raise ServiceError(
                f"{lock}: found it held for {UP_SECONDS:.0f} s, need one `up` at a time; end the other one"
            ) from error

    def _listen(self, service: Service, url: str, ready: Callable[[], bool], say: Say) -> None:
        """Make a service listen at its address."""
        if _must_start(service, ready, say):
            require_free(url, need=f"the {service.name}", remedy=f"set {ADDRESSES[service.name]}")
            say(f"starting the {service.name} at {url}")
            service.start()
            service.wait(ready, START_SECONDS)

    def _work(self, client: SyncPrefectClient, say: Say) -> None:
        """Make a worker take runs from the pool."""
        must_start = _must_start(self.worker, lambda: WORKER in self.online_workers(client), say)
        if must_start:
            bury(client, self.home)
        drop_missed(client, say)  # also where it runs: the machine may have slept
        if must_start:
            say(f"starting a worker for the pool {POOL}")
            self.worker.start()
            self.worker.wait(lambda: WORKER in self.online_workers(client), START_SECONDS)

    def down(self, say: Say) -> None:
        """Stop what `up` started and every flow run that computes for it."""
        if self.worker.stop():
            say("stopped the worker")
        stop(process for _, process in flow_runs(self.home))
        if self.is_healthy():
            with get_client(sync_client=True) as client:
                bury(client, self.home)
        for service in (self.files, self.server):
            if service.stop():
                say(f"stopped the {service.name}")

    def is_healthy(self) -> bool:
        """Whether our server answers; another one's answer at the same address does not count."""
        return self.server.process() is not None and _answers(f"{self.api_url}/health", 200)

    def serves_files(self) -> bool:
        """Whether our file server answers: it lists nothing, so its root is not found."""
        return self.files.process() is not None and _answers(self.files_url, 404)

    def online_workers(self, client: SyncPrefectClient) -> list[str]:
        """Names of the pool's workers that live; the server believes in a killed one for a while, this does not."""
        process = self.worker.process()
        started = process.create_time() if process else float("inf")
        return [
            worker.name
            for worker in client.read_workers_for_work_pool(POOL)
            if worker.status == WorkerStatus.ONLINE
            and worker.last_heartbeat_time is not None
            and (worker.name != WORKER or worker.last_heartbeat_time.timestamp() > started)
        ]

    def require_worker(self) -> None:
        """Check that a run would be taken up.

        Raises:
            ServiceError: if the server does not answer or no worker is online.
        """
        if not _answers(f"{self.api_url}/health", 200):
            raise ServiceError(f"server: found no answer at {self.api_url}, need it running; run `make up`")
        with get_client(sync_client=True) as client:
            if not self.online_workers(client):
                raise ServiceError(f"worker: found none online for pool {POOL}, need one; run `make up`")
            if client.read_work_pool(POOL).is_paused:
                raise ServiceError(f"pool {POOL}: found it paused, need it to take runs; resume it in the UI")


def from_settings() -> Stack:
    """Build the stack from Prefect's settings and CUSTOMDIFF_* variables.

    Raises:
        ServiceError: if they contradict each other, or one has a value that it cannot have.
    """
    prefect = get_current_settings()
    try:
        local = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise ServiceError(f"CUSTOMDIFF_{name}: found {first['input']!r} ({first['msg']}); correct it") from error
    host, port, home = str(prefect.server.api.host), str(prefect.server.api.port), prefect.home.resolve()
    ui_url = f"http://{host}:{port}"
    if prefect.api.url != f"{ui_url}/api":
        raise ServiceError(
            f"PREFECT_API_URL: found {prefect.api.url}, need {ui_url}/api, where the local server listens; "
            f"set {ADDRESSES['server']} to the same port"
        )
    files = urlsplit(local.files_url)
    if files.hostname not in LOOPBACK or _port(local.files_url) is None:
        raise ServiceError(
            f"{ADDRESSES['file-server']}: found {local.files_url}, need a port of this machine; set it like http://127.0.0.1:4201"
        )

    root = ("--root", str(local.store), "--port", str(files.port))
    pool = ("--pool", POOL, "--type", "process", "--name", WORKER, "--limit", str(worker_limit()))
    return Stack(
        home=home,
        ui_url=ui_url,
        files_url=local.files_url,
        server=Service("server", (*PREFECT, "server", "start", "--host", host, "--port", port), home),
        files=Service("file-server", (sys.executable, "-m", "deployments.files", *root), home),
        worker=Service("worker", (*PREFECT, "worker", "start", *pool), home),
    )


def _port(url: str) -> int | None:
    with suppress(ValueError):  # beyond 65535
        return urlsplit(url).port
    return None


def worker_limit() -> int:
    """Return how many flow runs the worker takes at a time.

    Raises:
        ServiceError: if the variable is no positive number.
    """
    try:
        return WorkerSettings().limit
    except ValidationError as error:
        found = error.errors()[0]["input"]
        raise ServiceError(f"CUSTOMDIFF_WORKER_LIMIT: found {found!r}, need 1 or more; correct it") from error


def _must_start(service: Service, ready: Callable[[], bool], say: Say) -> bool:
    """Whether a service has to be started; one that is deaf or has other settings is stopped first.

    Raises:
        ServiceError: if it has other settings while runs compute, which would end with it.
    """
    if service.process() is None:
        return True
    computing = sorted({run for run, _ in flow_runs(service.home)})
    if computing and not service.is_current():
        raise ServiceError(
            f"{service.name}: found it started with other variables (PREFECT_*, CUSTOMDIFF_*), settings of pyproject.toml or "
            f"package versions, and {len(computing)} runs computing ({computing[0]}), need them ended before it is replaced; wait "
            "for them, go back to what it was started with, or run `make down`, which stops them (retried they go on)"
        )
    reason = "its settings changed"
    if service.is_current():
        try:
            service.wait(ready, DEAF_SECONDS)
            return False
        except ServiceError:
            reason = f"no answer for {DEAF_SECONDS:.0f} s"
    say(f"replacing the {service.name}: {reason}")
    service.stop()
    return True


def _answers(url: str, status: int) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == status
    except httpx.HTTPError:
        return False
