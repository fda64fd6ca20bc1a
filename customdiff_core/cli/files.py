"""`customdiff inspect`, `convert` and `compress`: files of this program and others."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from customdiff_core.cli.bars import bars, console
from customdiff_core.cli.machine import (
    CategoryOption,
    DeltaArgument,
    ProfileOption,
    TokenOption,
    WeightsOption,
    machine,
    say,
    size_of,
    stated_as,
    told,
)
from customdiff_core.config import CompressConfig


def convert(
    name: DeltaArgument,
    out: Annotated[Path, typer.Argument(help="The file, or for diffusers and embedding the folder, that is written.")],
    to: Annotated[
        str, typer.Option(help="customdiff, diffusers, diffusers-bin, authors, compvis, embedding, webui, kohya, peft.")
    ],
    rank: Annotated[int, typer.Option(min=1, help="Of the LoRA (kohya, peft).")] = 64,
    token: TokenOption = None,
    category: CategoryOption = None,
    profile: ProfileOption = "openmoji",
    weights: WeightsOption = None,
) -> None:
    """Write a delta for another program."""
    from customdiff_core import delta as deltas
    from customdiff_core.interop.content import Base
    from customdiff_core.interop.diffusers_format import POOL_AT_END
    from customdiff_core.interop.formats import write
    from customdiff_core.pipeline import Pipeline
    from customdiff_core.weights import model_digest

    with told():
        here = machine(profile, weights, None, "auto")
        made = Pipeline(here.profile, here.store, here.runtime).delta(name, stated=stated_as(token, category))
        loaded = deltas.load(here.store.path(made) / deltas.FILE)
        deltas.check_base(loaded, model_digest(here.profile.model))
        for path in write(out, loaded, Base(here.profile.model), to, rank):
            console.print(f"{path}  {path.stat().st_size / 1e6:.2f} MB", markup=False)
        if to.startswith("diffusers") and any(len(rows) > 1 for rows in loaded.tokens.values()):
            said = f"Before drawing, since diffusers would take V* for the prompt's end: {POOL_AT_END}"
            console.print(said, markup=False, soft_wrap=True)


def compress(
    name: DeltaArgument,
    energy: Annotated[float | None, typer.Option(min=0, max=1, help="Fraction of the singular values' sum.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Singular values of every layer.")] = None,
    megabytes: Annotated[float | None, typer.Option(min=0, help="Size of the file.")] = None,
    profile: ProfileOption = "openmoji",
    weights: WeightsOption = None,
) -> None:
    """Keep a delta as thin factors: by energy, rank or size, one of them; by default 0.6 of the energy, as the released code."""
    from customdiff_core import tables
    from customdiff_core.compression import compress as run
    from customdiff_core.pipeline import Pipeline

    with told():
        here = machine(profile, weights, None, "auto")
        config = CompressConfig(
            energy=0.6 if energy is rank is megabytes is None else energy, rank=rank, megabytes=megabytes
        )
        with bars() as tell:
            whole = Pipeline(here.profile, here.store, here.runtime, tell).delta(name)
            made = run(whole, here.profile, config, store=here.store, progress=tell("compress"))
        report = tables.read(here.store, made, "compression")
        say(here, made)
        console.print(
            f"{size_of(here, whole):.2f} MB -> {size_of(here, made):.2f} MB, "
            f"rank {report['rank'].min()} to {report['rank'].max()}, "
            f"relative error {report['relative_error'].mean():.3f} (worst {report['relative_error'].max():.3f})"
        )


def inspect(
    path: Annotated[Path, typer.Argument(help="A file or folder of any readable format.")],
    token: TokenOption = None,
    category: CategoryOption = None,
    profile: ProfileOption = "openmoji",
    weights: WeightsOption = None,
) -> None:
    """Say what is in a file, and whether it fits this model."""
    from customdiff_core.interop.importing import inspect as run

    with told():
        found = run(path, machine(profile, weights, None, "auto").profile, stated_as(token, category))
        lineage = found.delta.lineage
        table = Table("", escape(f"{path}"), show_header=True)
        base = f"{lineage.base_digest[:12]}{' (stated, not in the file)' if lineage.base_stated else ''}"
        table.add_row("format", found.format)
        table.add_row("method", escape(lineage.method))
        table.add_row("base model", base)
        table.add_row("concepts, in prompts", escape(lineage.places))
        table.add_row("weights", f"{len(found.delta.weights)} whole, {len(found.delta.factors)} factored")
        tokens = [f"{name} {[len(row) for row in rows.values()]}" for name, rows in found.delta.tokens.items()]
        table.add_row("tokens", escape(", ".join(tokens)) or "none")
        if found.changes:
            table.add_row("relative change", f"{min(found.changes.values()):.4f} to {max(found.changes.values()):.4f}")
        table.add_row("fits this model", f"no: {escape(found.problem)}" if found.problem else "yes")
        console.print(table)
        if found.problem:
            raise typer.Exit(1)
