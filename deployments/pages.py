"""Tables that a program prints, and renews in a page that people write."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from customdiff_core.marks import renew


def show(tables: Mapping[str, Sequence[str]], page: Path | None) -> None:
    """Print each table's lines, and write them between the page's marks of its name.

    Raises:
        ConfigError: for a page without these marks; all is printed then.
    """
    console = Console(width=220, highlight=False)
    for lines in tables.values():
        for line in (*lines, ""):
            console.print(line, markup=False)
    if page:
        for mark, lines in tables.items():
            renew(page, mark, lines)
