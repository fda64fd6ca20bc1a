"""Pictures of Prefect's UI for the README: the newest whole run of `customize/cat`, and what its evaluation shows there.

make cat && python -m deployments.showcase_ui     # writes docs/ui-flow-run.png and docs/ui-evaluate.png; needs a Chromium
"""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import Artifact, FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from customdiff_core.errors import ServiceError
from customdiff_core.settings import REPOSITORY
from deployments import stack
from deployments.doctor import BROWSERS

CONCEPT, STAGE = "cat", "evaluate"
WIDTH, HEIGHT = 1280, 1000
GRAPH, TABLE = 570, 640  # pixels from the top: without the log, and without the charts
PATIENCE = 60_000.0  # milliseconds
SETTLED = 3_000.0  # milliseconds until the UI has drawn its graph


def main() -> None:
    """Take the pictures."""
    ui_url = stack.from_settings().ui_url
    with get_client(sync_client=True) as client:
        run = _newest(client)
        shown = _artifact(client, run)
    with browser_page() as page:
        for address, words, name, height in (
            (f"runs/flow-run/{run.id}", "Completed", "ui-flow-run.png", GRAPH),
            (f"artifacts/artifact/{shown.id}", "Text alignment", "ui-evaluate.png", TABLE),
        ):
            page.goto(f"{ui_url}/{address}")
            page.get_by_text(words).first.wait_for()
            page.wait_for_timeout(SETTLED)
            path = REPOSITORY / "docs" / name
            page.screenshot(path=path, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
            typer.echo(path.relative_to(REPOSITORY))


@contextmanager
def browser_page() -> Generator[Any]:
    """An empty page of a Chromium of this machine.

    Raises:
        ServiceError: if there is none.
    """
    from playwright.sync_api import sync_playwright

    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise ServiceError("pictures of the UI: found no Chromium, need one; on Debian: sudo apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=Path(found), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def _newest(client: SyncPrefectClient) -> FlowRun:
    whole = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED]))
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=whole),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[CONCEPT])),
        sort=FlowRunSort.END_TIME_DESC,
        limit=1,
    )
    if not found:
        raise ServiceError(
            f"pictures of the UI: found no completed run of customize/{CONCEPT}, need one; run `make cat`"
        )
    return found[0]


def _artifact(client: SyncPrefectClient, run: FlowRun) -> Artifact:
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), key=ArtifactFilterKey(any_=[f"{CONCEPT}-{STAGE}"])
        )
    )
    if not found:
        raise ServiceError(
            f"pictures of the UI: found no artifact {CONCEPT}-{STAGE} of {run.name}, need it; run `make cat`"
        )
    return found[0]


if __name__ == "__main__":
    typer.run(main)
