"""Look at this machine: what is here, what is missing, and what to do about it.

    python -m deployments.local doctor

`error` stops the pipeline, `warning` stops a part of it or will, `ok` is in order.
"""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import psutil
from packaging.requirements import Requirement
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from rich.markup import escape
from rich.table import Table

from customdiff_core import profiles, weights
from customdiff_core.errors import CustomDiffusionError, ServiceError
from customdiff_core.processor import native_precision
from customdiff_core.settings import REPOSITORY, Settings
from deployments import stack
from deployments.processes import Service, require_free
from deployments.registration import POOL, declared_deployments, registered

GIGABYTE = 1024**3
DISK = 10  # GB: the environment and a few customizations
MEMORY = 4  # GB: one customization of the embedded world
NVIDIA = Path("/dev/nvidiactl")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}
REINSTALL = "remove .venv and run make again"

Level = Literal["ok", "warning", "error"]


class Check(NamedTuple):
    """One finding; the remedy is empty when all is well."""

    what: str
    level: Level
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Make every check; one that cannot be made is an error, not the end of the others."""
    checks: tuple[Callable[[], Check], ...] = (
        python,
        lock,
        backport,
        disk,
        memory,
        cores,
        device,
        model,
        store,
        browser,
    )
    return [_made(check) for check in checks] + list(services())


def _made(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # of whatever kind: the other checks may say why
        return Check(check.__name__, "error", f"{type(error).__name__}: {error}", "correct what it names")


def table(checks: list[Check]) -> Table:
    """Lay the findings out."""
    laid_out = Table("", "check", "found", "remedy")
    for check in checks:
        colour = COLOURS[check.level]
        laid_out.add_row(f"[{colour}]{check.level}[/]", check.what, escape(check.found), escape(check.remedy))
    return laid_out


def python() -> Check:
    """3.11 or 3.12."""
    found = f"{platform.python_version()} at {sys.executable}"
    fits = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return _check("Python", fits, found, "install Python 3.11 or 3.12, then " + REINSTALL)


def lock(path: Path = REPOSITORY / "requirements.lock") -> Check:
    """Installed versions are the locked ones."""
    wrong = [text for line in path.read_text().splitlines() if (text := _difference(line))]
    found = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    return _check("requirements.lock", not wrong, found or "all installed as locked", REINSTALL)


def _difference(line: str) -> str | None:
    text = line.partition("#")[0].strip()
    if not text:
        return None
    requirement = Requirement(text)
    if requirement.marker and not requirement.marker.evaluate():
        return None
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"no {requirement.name}"
    return None if requirement.specifier.contains(version) else f"{requirement.name} {version}"


def backport() -> Check:
    """Without the `dataclasses` back-port, which would hide Python's own module from Prefect's server."""
    try:
        found = f"dataclasses {metadata.version('dataclasses')}"
    except metadata.PackageNotFoundError:
        return Check("dataclasses back-port", "ok", "not installed")
    return Check("dataclasses back-port", "error", found, f"{sys.executable} -m pip uninstall dataclasses")


def disk() -> Check:
    """Room for artifacts where the store lies."""
    free = shutil.disk_usage(_existing(Settings().store)).free / GIGABYTE
    remedy = "free some space, or set CUSTOMDIFF_STORE to a folder on another disk"
    return _check("disk", free >= DISK, f"{free:.0f} GB free of {DISK} GB needed", remedy, "warning")


def memory() -> Check:
    """Room for one training."""
    free = psutil.virtual_memory().available / GIGABYTE
    remedy = "close other programs"
    return _check("memory", free >= MEMORY, f"{free:.0f} GB free of {MEMORY} GB needed", remedy, "warning")


def cores() -> Check:
    """Enough for the server and a training at a time; and in what they multiply, on which all times depend."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    return _check(
        "cores", count >= 2, f"{count}, multiplying {native_precision()}", "all takes longer with one", "warning"
    )


def device() -> Check:
    """What torch computes on."""
    try:
        import torch

        from customdiff_core.devices import resolve_device

        found = f"{torch.__version__} on {resolve_device('auto')}"
        blind = NVIDIA.exists() and not torch.cuda.is_available()
        remedy = f"torch sees no GPU, though there is one: update its driver to one for CUDA {torch.version.cuda}"
        return _check("torch", not blind, found, remedy, "warning")
    except (ImportError, OSError) as error:
        return Check("torch", "error", str(error), REINSTALL)


def model() -> Check:
    """The embedded base model and its judge."""
    profile = profiles.get("openmoji")
    try:
        folder = weights.model_folder(profile.model)
        weights.encoder_files(profile.judge)
    except CustomDiffusionError as error:
        return Check("embedded weights", "error", str(error), f"check {Settings().data / 'models'} out again")
    return Check("embedded weights", "ok", str(folder))


def store() -> Check:
    """The artifact store can be written."""
    root = Settings().store
    try:
        with tempfile.TemporaryFile(dir=_existing(root)):
            return Check("store", "ok", str(root))
    except OSError as error:
        return Check("store", "error", f"{root}: {error.strerror}", "fix its permissions, or set CUSTOMDIFF_STORE")


def browser() -> Check:
    """A Chromium, for the browser tests only."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    remedy = "for the browser tests: apt-get install chromium, or brew install --cask chromium"
    return _check("Chromium", found is not None, found or "none", remedy, "warning")


def services() -> Iterator[Check]:
    """The local stack: not running is fine, something else in its place is not."""
    try:
        local = stack.from_settings()
    except ServiceError as error:
        yield Check("settings", "error", str(error), "correct the variables")
        return
    yield _port(local.server, local.ui_url)
    yield _port(local.files, local.files_url)
    if not local.is_healthy():
        yield Check("Prefect server", "warning", f"no answer at {local.api_url}", "make up")
        return
    yield Check("Prefect server", "ok", local.ui_url)
    with get_client(sync_client=True) as client:
        yield from _inside(client, local)


def _port(service: Service, url: str) -> Check:
    port, remedy = urlsplit(url).port, f"set {stack.ADDRESSES[service.name]}"
    if service.process():
        return Check(f"port {port}", "ok", f"our {service.name}")
    try:
        require_free(url, need=f"the {service.name}", remedy=remedy)
    except ServiceError as error:
        return Check(f"port {port}", "error", str(error), f"stop that process, or {remedy}")
    return Check(f"port {port}", "ok", "free")


def _inside(client: SyncPrefectClient, local: stack.Stack) -> Iterator[Check]:
    """What the server should know of."""
    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        yield Check("work pool", "warning", f"no {POOL}", "make up")
        return
    yield _check("work pool", not pool.is_paused, POOL, "resume it in the UI", "warning")
    workers = local.online_workers(client)
    yield _check("worker", bool(workers), ", ".join(workers) or "none online", "make up", "warning")
    there = set(registered(client))
    missing = sorted(declared_deployments().keys() - there)
    found = f"no {', '.join(missing)}" if missing else f"{len(there)} there"
    yield _check("deployments", not missing, found, "make up", "warning")


def _check(what: str, fits: bool, found: str, remedy: str, level: Level = "error") -> Check:
    return Check(what, "ok", found) if fits else Check(what, level, found, remedy)


def _existing(path: Path) -> Path:
    """The path, or the nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
