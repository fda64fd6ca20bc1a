"""`customdiff tidy`: disk space back."""

from datetime import timedelta
from typing import Annotated

import typer

from customdiff_core.artifacts import Store
from customdiff_core.cli.bars import console
from customdiff_core.cli.machine import told


def tidy(
    older_than: Annotated[float, typer.Option(min=0, help="Days for which nobody has worked on it.")] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, only say what would go.")] = False,
) -> None:
    """Remove checkpoints, leftovers and old benchmarks' trainings; nothing that a concept's name stands for, no figures."""
    from customdiff_core.tidy import plan
    from customdiff_core.tidy import tidy as run

    with told():
        store = Store()
        found = plan(store, timedelta(days=older_than))
        if yes:
            found = run(found, store)
        for one in found:
            path = one.path.relative_to(store.root)
            said = f"{'removed' if yes else 'would remove'} {one.bytes / 1e6:9.1f} MB  {path}  {one.why}"
            console.print(said, markup=False, soft_wrap=True)
        total = f"{sum(one.bytes for one in found) / 1e6:.1f} MB in {store.root}"
        console.print(
            f"{total}: removed" if yes else f"{total}; nothing was removed: say --yes to remove it", markup=False
        )
