"""Forget a picture that somebody asks to be removed.

customdiff forget https://host/picture.jpg          # says what would go
customdiff forget https://host/picture.jpg --yes    # removes it
"""

import json
import re
from collections.abc import Collection
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer
from rich.console import Console
from rich.markup import escape

from customdiff_core.artifacts import Store, write_atomic
from customdiff_core.errors import CustomDiffusionError
from customdiff_core.retrieval.forget import Forgotten, plan
from customdiff_core.retrieval.forget import forget as forget_picture
from customdiff_core.settings import REPOSITORY

if TYPE_CHECKING:
    from prefect.client.schemas.objects import Artifact

RUN = re.compile(r"\(([0-9a-f-]{36})\)$")  # of a producer that is a flow run; the command line and the library are none
PENDING = "forgotten-pages.json"
PAGES = 50  # asked for at once: each may be a megabyte


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
        console.print(_forget_pages(found, store))
        console.print("it will not be fetched again; backups and indices are yours to clean")
    else:
        console.print("nothing was removed; say --yes to remove it")


def _forget_pages(found: Forgotten, store: Store) -> str:
    """Delete every page of the UI that shows what was made from the picture, where a server is running.

    Pages name their artifact's key; those of the runs that made one go whole. What could not be asked for is kept in the store,
    and asked for the next time.
    """
    path = store.root / PENDING
    runs = {run.group(1) for producer in found.producers if (run := RUN.search(producer))}
    pending = {one.key for one in found.artifacts} | runs
    pending |= set(json.loads(path.read_bytes())) if path.is_file() else set()
    if not pending:
        return "no page of the UI showed it"
    write_atomic(path, json.dumps(sorted(pending)).encode())
    # Here: the other commands start without a server's library.
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is None:  # Prefect would start an empty server of its own
        return f"pages in the UI: found no PREFECT_API_URL, need the server's; run this again in {REPOSITORY}"
    try:
        with get_client(sync_client=True) as client:
            gone: set[UUID] = set()
            for start in count(0, PAGES):
                pages = client.read_artifacts(limit=PAGES, offset=start)
                gone |= {page.id for page in pages if _shows(page, pending)}
                if len(pages) < PAGES:
                    break
            for page in gone:
                with suppress(ObjectNotFound):  # somebody else was quicker
                    client.delete_artifact(page)
    except Exception as error:
        return f"pages in the UI: found no server ({type(error).__name__}), need it to remove them; start it and run this again"
    path.unlink()
    return f"removed {len(gone)} pages of the UI"


def _shows(page: "Artifact", pending: Collection[str]) -> bool:
    return str(page.flow_run_id) in pending or any(one in str(page.data) for one in pending)
