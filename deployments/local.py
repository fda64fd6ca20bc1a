"""The local stack from the command line; the Makefile's targets call this.

python -m deployments.local up | down | status | doctor
python -m deployments.local run customize/cat --param 'train={"steps": 100}'
"""

import os
import subprocess
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from customdiff_core.artifacts import Store
from customdiff_core.errors import CustomDiffusionError, ServiceError, StoreError
from customdiff_core.settings import REPOSITORY

WATCH_SECONDS = 3600
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


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    deployment: Annotated[str, typer.Argument(help="<flow>/<deployment>")] = "customize/cat",
) -> None:
    """Run a deployment and watch it; what follows its name goes to `prefect deployment run`."""
    from deployments import stack

    local = stack.from_settings()
    local.require_worker()
    watch = ("--watch", "--watch-timeout", str(WATCH_SECONDS))
    try:
        done = subprocess.run((*stack.PREFECT, "deployment", "run", deployment, *watch, *context.args), check=False)
    except KeyboardInterrupt:
        say(f"no longer watching; the run goes on: {local.ui_url}/runs")
        raise typer.Exit(INTERRUPTED) from None
    if done.returncode:
        raise ServiceError(
            f"{deployment}: found a run that did not complete, need it completed; see above and {local.ui_url}"
        )
    report = report_url(local.files_url, deployment.partition("/")[2])
    if report:
        say(f"report: {report}")
    say(f"UI: {local.ui_url}")


def report_url(files_url: str, concept: str) -> str | None:
    """Address of a concept's newest report; None when it has none."""
    try:
        report = Store().newest("report", concept=concept)
    except StoreError:
        return None
    return f"{files_url}/report/{report.key}/report.html"


def say(text: str) -> None:
    """Tell the user; addresses stay on one line."""
    console.print(Text(text), soft_wrap=True)


def settle() -> None:
    """Make the checkout the working folder, where Prefect reads its settings, and state's home a folder in it."""
    os.environ["PREFECT_HOME"] = str(Path(os.environ.get("PREFECT_HOME", REPOSITORY / ".prefect")).resolve())
    # Idle threads that spin take the cores from the others; the update notice asks the network.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.chdir(REPOSITORY)


def main() -> None:
    """Run a command; an error raised on purpose is one red line."""
    settle()
    try:
        app()
    except CustomDiffusionError as error:
        Console(stderr=True).print(Text(str(error), style="red"), soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
