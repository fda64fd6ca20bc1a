"""`customdiff table`: a measured table as text."""

from pathlib import Path
from typing import Annotated

import typer

from customdiff_core.artifacts import Store
from customdiff_core.cli.bars import console
from customdiff_core.cli.machine import told
from customdiff_core.errors import MissingError


def table(
    name: Annotated[str, typer.Argument(help="A file of data/protocols or data/searches.")] = "openmoji-nightly",
    page: Annotated[
        Path | None, typer.Option(help="A file in which the table between its two marks is renewed.")
    ] = None,
    profile: Annotated[str, typer.Option("--profile", "-p", help="Of the base model.")] = "openmoji",
) -> None:
    """Write a profile's newest benchmark or search as a Markdown table, from its Parquet files."""
    from customdiff_core.benchmark import search
    from customdiff_core.marks import renew

    with told():
        store = Store()
        kind, read = ("search", _trials) if name in search.names() else ("benchmark", _night)
        text = read(name, profile, store)
        if page is None:
            console.print(text, markup=False, soft_wrap=True)
            return
        renew(page, kind, [text])
        console.print(f"{page}: renewed", markup=False)


def _night(name: str, profile: str, store: Store) -> str:
    from customdiff_core.benchmark.history import newest
    from customdiff_core.benchmark.report import markdown, night_of

    last = newest(name, profile, store)
    return f"Night of {night_of(last, store)}, protocol `{name}`:\n\n{markdown(last, store)}"


def _trials(name: str, profile: str, store: Store) -> str:
    from customdiff_core.benchmark.conclude import markdown

    labels = {"search": name, "profile": profile}
    found = [one for one in store.manifests("search") if labels.items() <= one.recipe.labels.items()]
    own = [one for one in found if not one.recipe.labels.get("stated")]
    if newest := store.first_whole(sorted(own, key=lambda one: one.created, reverse=True)):
        return markdown(newest, store)
    raise MissingError(
        f"search: found none of {name} with profile {profile} in {store.root}, need one; run its deployment"
    )
