"""Background processes that outlive the command that starts them, and who listens on a port.

    <home>/run/<name>.json    the process's number, birth and settings
    <home>/logs/<name>.log    what it says; `.log.1` is what its predecessor said

A process is ours only when number and birth agree, so a number that the system gave away again is never stopped.
"""

import hashlib
import json
import os
import signal
import socket
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from pydantic import ValidationError

from customdiff_core.artifacts import write_atomic
from customdiff_core.config import Frozen
from customdiff_core.errors import ServiceError
from customdiff_core.settings import REPOSITORY

PREFIXES = ("PREFECT_", "CUSTOMDIFF_")  # the variables whose change asks for a new process
STOP_SECONDS = 20.0
CLOCK_SECONDS = 2.0  # psutil reads start times through the boot time, which moves a little when the clock is set
PROC, START_TICKS = Path("/proc"), 22  # a field of proc(5)


class Record(Frozen):
    """What is remembered of a started process."""

    pid: int
    started: float
    settings: str
    birth: str = ""


@dataclass(frozen=True)
class Service:
    """One background process of the local stack.

    Args:
        name: what its log and pid file are called.
        command: its command line.
        home: the folder of all the stack's state.
    """

    name: str
    command: tuple[str, ...]
    home: Path

    @property
    def log(self) -> Path:
        """Where it says what it does."""
        return self.home / "logs" / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        """Where its process is remembered."""
        return self.home / "run" / f"{self.name}.json"

    @property
    def settings(self) -> str:
        """A digest of its command, of what configures it (digested: it may hold passwords) and of the installed versions."""
        environment = sorted((name, value) for name, value in os.environ.items() if name.startswith(PREFIXES))
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"].get("prefect", {})
        locked = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
        return hashlib.sha256(json.dumps([self.command, environment, project, locked]).encode()).hexdigest()

    def process(self) -> psutil.Process | None:
        """Return the process that was started here, if it lives."""
        record = self._record()
        if record is None:
            return None
        with suppress(psutil.Error):
            process = psutil.Process(record.pid)
            if _is(process, record) and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def is_current(self) -> bool:
        """Whether it lives and was started with today's command and environment."""
        record = self._record()
        return record is not None and record.settings == self.settings and self.process() is not None

    def start(self) -> None:
        """Start it in a session of its own, deaf to the terminal, with default signals whatever the caller ignores."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        pid = os.posix_spawn(
            self.command[0],
            self.command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        )
        record = Record(pid=pid, started=psutil.Process(pid).create_time(), settings=self.settings, birth=birth(pid))
        write_atomic(self.pid_file, record.model_dump_json().encode())

    def wait(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until it answers.

        Raises:
            ServiceError: if it ends, or takes longer than `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process() is None:
                raise ServiceError(
                    f"{self.name}: found it ended at once ({self._last_words()}), need it running; read {self.log}"
                )
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{self.name}: found no answer within {seconds:.0f} s, need it ready; "
                    f"read {self.log}, then run `make down` and `make up`"
                )
            time.sleep(0.2)

    def stop(self) -> bool:
        """Stop it and all that it started; return whether there was something to stop."""
        process = self.process()
        if process is not None:
            stop([process, *process.children(recursive=True)])
        self.pid_file.unlink(missing_ok=True)
        return process is not None

    def _record(self) -> Record | None:
        try:
            return Record.model_validate_json(self.pid_file.read_bytes())
        except (OSError, ValidationError):
            return None

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1].strip() if lines else "it said nothing"


def birth(pid: int) -> str:
    """When a process began, in ticks since which boot; empty where there is no Linux, or no such process.

    A clock that is set, or that stood still while the machine was suspended, moves psutil's start times, and not this.
    """
    try:
        boot = (PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
        # Fields of proc(5) from the third on: the second is a name in brackets, which may hold anything.
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{boot} {fields[START_TICKS - 3]}"


def _is(process: psutil.Process, record: Record) -> bool:
    if record.birth:
        return birth(process.pid) == record.birth
    return abs(process.create_time() - record.started) < CLOCK_SECONDS


def stop(processes: Iterable[psutil.Process], seconds: float = STOP_SECONDS) -> None:
    """Ask processes to end, and after a deadline end them."""
    asked = list(processes)
    for process in asked:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, deaf = psutil.wait_procs(asked, timeout=seconds)
    for process in deaf:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(deaf, timeout=seconds)


def flow_runs(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Yield the flow runs computing for this stack, by id: a run outlives a worker that was killed."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment = process.environ()
            run_id = environment.get("PREFECT__FLOW_RUN_ID")
            if run_id and environment.get("PREFECT_HOME") == str(home):
                yield run_id, process


def require_free(url: str, *, need: str, remedy: str) -> None:
    """Check that nothing listens at an address.

    Raises:
        ServiceError: naming who does, and the remedy.
    """
    host, port = urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 80
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(
                f"port {port}: found {listener(port) or error.strerror}, need it free for {need}; "
                f"stop that process, or choose another port: {remedy}"
            ) from error


def listener(port: int) -> str | None:
    """Say which process listens on a port; None when none does or the system does not tell."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                return _describe(connection.pid)
    return None


def _describe(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return f"{process.name()} (pid {pid}: {' '.join(process.cmdline())[:100]})"
    return f"process {pid}"
