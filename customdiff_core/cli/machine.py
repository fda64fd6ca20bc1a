"""What all commands of `customdiff` share: their options, the profile on this machine, and how they speak."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.logging import RichHandler

from customdiff_core import profiles
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.cli.bars import console, notes
from customdiff_core.config import FinetuneConfig, Runtime, Stated
from customdiff_core.errors import CustomDiffusionError
from customdiff_core.finetuning import methods
from customdiff_core.lineage import lineage_of
from customdiff_core.profiles import Profile

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help=f"One of {', '.join(profiles.BUILDERS)}.")]
WeightsOption = Annotated[Path | None, typer.Option(help="A diffusers folder instead of the profile's own weights.")]
IndexOption = Annotated[Path | None, typer.Option(help="A clip-retrieval folder instead of the profile's own.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
MethodOption = Annotated[str, typer.Option(help=f"One of {', '.join(methods.METHODS)}.")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Optimizer steps; by default the profile's.")]
SeedOption = Annotated[int, typer.Option(help="Training seed.")]
TokenOption = Annotated[
    list[str] | None,
    typer.Option("--token", help="Of an imported file: a name for each token, in its order, or its rare word."),
]
DeltaArgument = Annotated[
    str,
    typer.Argument(
        help="A concept (the training that its name stands for, or else one is made), the key of a delta, or a file."
    ),
]
CategoryOption = Annotated[list[str] | None, typer.Option("--category", help="That token's category, such as cat.")]


@dataclass(frozen=True)
class Machine:
    """A profile on this machine, with the store."""

    profile: Profile
    runtime: Runtime
    store: Store

    def training(self, method: str, steps: int | None, seed: int) -> FinetuneConfig:
        """The profile's settings for a method, with what the command line states."""
        stated = {"seed": seed} | ({"steps": steps} if steps else {})
        return self.profile.training(method).model_copy(update=stated)


def machine(
    profile: str, weights: Path | None, index: Path | None, device: str, validation: Path | None = None
) -> Machine:
    """Build what all commands need."""
    found = profiles.get(profile, model=weights, index=index, validation=validation)
    return Machine(found, Runtime.model_validate({"device": device}), Store(producer="customdiff"))


@contextmanager
def told() -> Generator[None]:
    """Say this project's own errors in a line instead of a traceback, and what the core logs above the bars."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=notes, show_path=False)]
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about themselves
            yield
    except CustomDiffusionError as error:
        _fail(type(error).__name__, [str(error)], error)
    except ValidationError as error:
        where = [(".".join(map(str, one["loc"])), one["input"], one["msg"]) for one in error.errors()]
        _fail(error.title, [f"{name}: found {found!r}; {said}" for name, found, said in where], error)


def _fail(title: str, lines: list[str], error: Exception) -> NoReturn:
    """End with an error in lines of its own."""
    notes.print(f"[red]{title}[/red]", end=" ")
    for line in lines:
        notes.print(line, markup=False)
    raise typer.Exit(1) from error


def stated_as(tokens: list[str] | None, categories: list[str] | None) -> Stated:
    """What the command line says of an imported file."""
    return Stated(tokens=tuple(tokens or ()), categories=tuple(categories or ()))


def say(here: Machine, made: Artifact) -> None:
    """A line about a delta: its key, what it knows, how large it is."""
    labels = here.store.manifest(made).recipe.labels
    said = f"{labels.get('concept', '')} ({labels.get('method', '')}, {labels.get('way', '')})"
    console.print(f"delta {made.key}  {said}  {size_of(here, made):.2f} MB", markup=False)


def say_places(here: Machine, delta: Artifact) -> None:
    """A line about what {0}, {1}, ... of a prompt stand for, where a delta knows several concepts; not among the answers."""
    lineage = lineage_of(delta, here.store)
    if len(lineage.concepts) > 1:
        notes.print(f"in prompts: {lineage.places}", markup=False, soft_wrap=True)


def size_of(here: Machine, delta: Artifact) -> float:
    """A delta's size in megabytes."""
    from customdiff_core.delta import FILE

    return (here.store.path(delta) / FILE).stat().st_size / 1e6
