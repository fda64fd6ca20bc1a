"""The local stack from the command line; the Makefile's targets call this.

python -m deployments.local up | down | status | doctor
python -m deployments.local register      # on a server that somebody else started
python -m deployments.local run customize/cat --param 'train={"steps": 100}'
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from customdiff_core.errors import CustomDiffusionError, ServiceError
from customdiff_core.settings import REPOSITORY
from deployments.files import LOOPBACK

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

WATCH_SECONDS = 12 * 3600  # a night of the benchmark takes an hour and more
INTERRUPTED = 130

console = Console()
app = typer.Typer(add_completion=False, no_args_is_help=True, help="The local Prefect stack.")


@app.command()
def up() -> None:
    """Start server, file server and worker, and deploy; safe to repeat."""
    from deployments import stack

    local = stack.from_settings()
    local.up(say)
    say(f"ready: {local.ui_url}")


@app.command()
def register() -> None:
    """Tell a server that is there already: the pool, the GPU slot, the deployments; safe to repeat."""
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    from deployments import registration

    with get_client(sync_client=True) as client:
        registration.prepare(client)
        registration.deploy(client, get_current_settings().home / "logs" / "deploy.log", say)


@app.command()
def down() -> None:
    """Stop what `up` started."""
    from deployments import stack

    stack.from_settings().down(say)


@app.command()
def status() -> None:
    """Say which services run."""
    from deployments import stack

    table = Table("service", "pid", "log")
    for service in stack.from_settings().services:
        process = service.process()
        table.add_row(service.name, str(process.pid) if process else "-", str(service.log))
    console.print(table)


@app.command()
def doctor() -> None:
    """Check this machine and say what to do about what is missing."""
    from deployments import doctor as checks

    results = checks.examine()
    console.print(checks.table(results))
    if any(result.level == "error" for result in results):
        raise typer.Exit(1)


@app.command()
def run(
    deployment: Annotated[str, typer.Argument(help="<flow>/<deployment>")] = "customize/cat",
    param: Annotated[list[str] | None, typer.Option(help="name=value, the value in JSON; may be repeated")] = None,
) -> None:
    """Run a deployment and follow it."""
    from prefect.client.orchestration import get_client

    from deployments import registration, stack, watch

    local = stack.from_settings()
    local.require_worker()
    with get_client(sync_client=True) as client:
        registration.drop_missed(client, say)
        flow_run = watch.start(client, deployment, param or [])
        url = f"{local.ui_url}/runs/flow-run/{flow_run.id}"
        say(f"{deployment}: {url}")
        try:
            with console.status("") as status:
                done = watch.follow(client, flow_run.id, WATCH_SECONDS, say, status.update, local.require_worker)
        except KeyboardInterrupt:
            say(f"no longer watching; the run goes on: {url}")
            raise typer.Exit(INTERRUPTED) from None
        if not (done.state and done.state.is_completed()):
            why = done.state.message if done.state else "no state"
            raise ServiceError(f"{deployment}: found it {done.state_name}: {why}; see {url}")
        say(f"done in {done.total_run_time.total_seconds():.0f} s")
        report = report_url(client, done.id, local.files_url)
    if report:
        say(f"report: {report}")
    say(f"UI: {local.ui_url}")


def report_url(client: "SyncPrefectClient", run: UUID, files_url: str) -> str | None:
    """Address of the report that a run linked in the UI; None where it wrote none."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    linked = re.compile(rf"{re.escape(files_url)}/report/[0-9a-f]+/report\.html")
    shown = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run])))
    return next((found.group() for page in shown if (found := linked.search(str(page.data)))), None)


def say(text: str) -> None:
    """Tell the user; addresses stay on one line."""
    console.print(Text(text), soft_wrap=True)


def settle() -> None:
    """Make the checkout the working folder, where Prefect reads its settings, and state's home a folder in it."""
    os.environ["PREFECT_HOME"] = str(Path(os.environ.get("PREFECT_HOME", REPOSITORY / ".prefect")).resolve())
    # Threads that wait for the next of many small sums spin for some 50 microseconds, and then sleep: a training step on two
    # cores takes 0.6 of the time that it takes when they sleep at once, and nobody else waits for a core that only spins.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its notice asks the network
    for name in ("NO_PROXY", "no_proxy"):  # a proxy of the network knows no server of this machine
        others = [one for one in os.environ.get(name, "").split(",") if one]
        os.environ[name] = ",".join(dict.fromkeys([*others, *LOOPBACK]))
    port = os.environ.get("PREFECT_SERVER_API_PORT")
    if port:  # pyproject.toml has those of the usual one
        origins = ",".join(f"http://{host}:{port}" for host in LOOPBACK)
        os.environ.setdefault("PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS", origins)
    os.chdir(REPOSITORY)


def main() -> None:
    """Run a command; an error raised on purpose is one red line."""
    settle()
    try:
        app()
    except (CustomDiffusionError, httpx.TransportError) as error:
        said = str(error)
        if isinstance(error, httpx.TransportError):
            said = f"server: found no answer ({type(error).__name__}: {error}), need it running; run `make up`"
        Console(stderr=True).print(Text(said, style="red"), soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
