"""Forget a picture that somebody asks to be removed.

customdiff forget https://host/picture.jpg          # says what would go
customdiff forget https://host/picture.jpg --yes    # removes it
"""

from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console
from rich.markup import escape

from customdiff_core.artifacts import Store
from customdiff_core.errors import CustomDiffusionError
from customdiff_core.retrieval.forget import Forgotten, plan
from customdiff_core.retrieval.forget import forget as forget_picture


def forget(
    url: Annotated[str, typer.Argument(help="the picture's link, as the regularization set has it")],
    yes: Annotated[bool, typer.Option("--yes", help="remove it; without, only say what would go")] = False,
) -> None:
    """Drop a picture, the trainings it was part of and their pages, and never fetch it again."""
    console, store = Console(), Store()
    try:
        found = forget_picture(url, store) if yes else plan(url, store)
    except CustomDiffusionError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        raise typer.Exit(1) from error
    for artifact in found.artifacts:
        console.print(f"{'removed' if yes else 'would remove'} {artifact.kind} {artifact.key}")
    for folder in found.folders:
        console.print(f"{'removed' if yes else 'would remove'} {escape(str(folder))}")
    if yes:
        console.print(_forget_pages(found))
        console.print("it will not be fetched again; backups and indices are yours to clean")
    else:
        console.print("nothing was removed; say --yes to remove it")


def _forget_pages(found: Forgotten) -> str:
    """Delete what the runs that used the picture show in the UI, where a server is running."""
    runs = [UUID(producer.rsplit("(", 1)[-1].rstrip(")")) for producer in found.producers if producer != "library"]
    if not runs:
        return "no run of the UI used it"
    from prefect.client.orchestration import get_client  # here: the other commands start without a server's library
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    try:
        with get_client(sync_client=True) as client:
            pages = client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=runs))
            )
            for page in pages:
                client.delete_artifact(page.id)
    except Exception as error:
        return f"pages in the UI: found no server ({type(error).__name__}), need it to remove them; start it and run this again"
    return f"removed {len(pages)} pages of the UI"
