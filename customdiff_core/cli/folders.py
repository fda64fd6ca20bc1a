"""`customdiff new` and `lay-out`: one's own concept, and a published benchmark's, as folders of data/concepts."""

from pathlib import Path
from typing import Annotated

import typer

from customdiff_core.cli.bars import console
from customdiff_core.cli.machine import told

IntoOption = Annotated[Path | None, typer.Option(help="The data folder; by default the project's.")]


def new(
    name: Annotated[str, typer.Argument(help="Of the concept: small letters, digits, - and _.")],
    category: Annotated[str, typer.Argument(help='Its class word, such as cat or "teddy bear".')],
    pictures: Annotated[list[Path], typer.Argument(help="4 to 6 pictures of it; they are copied.")],
    token: Annotated[str, typer.Option(help="V*; by default the name in angle brackets.")] = "",
    prompts: Annotated[
        Path | None, typer.Option(help="Evaluation prompts, one a line; by default data/prompts/photographs.txt.")
    ] = None,
    into: IntoOption = None,
) -> None:
    """Make a concept of your own pictures: a folder of data/concepts."""
    from customdiff_core.concept_folders import begin
    from customdiff_core.settings import Settings

    with told():
        made = begin(name, category, pictures, into or Settings().data, token=token, prompts=prompts)
        console.print(f"{made.folder}: {len(made.images)} pictures of {made.noun}", markup=False)
        console.print(f"its words are in concept.yaml and prompts.txt; next: customdiff train {name}", markup=False)


def lay_out(
    source: Annotated[list[Path], typer.Argument(help="JSON lists of concepts, and of pairs, as they are published.")],
    name: Annotated[str, typer.Option(help="Of the protocol that is written.")] = "customconcept101",
    into: IntoOption = None,
    initializer: Annotated[
        list[str] | None,
        typer.Option(help="Rare tokens that V*s start from: ktn, pll and ucd, another for each concept of a pair."),
    ] = None,
) -> None:
    """Write published concepts as folders of data/concepts, their pairs' prompts, and a protocol of all of them."""
    from customdiff_core.published import lay_out_protocol
    from customdiff_core.settings import Settings

    with told():
        for path in lay_out_protocol(source, into or Settings().data, name, initializer or ("ktn", "pll", "ucd")):
            console.print(str(path), markup=False)
