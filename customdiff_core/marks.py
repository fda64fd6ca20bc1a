"""Tables in pages that people write: what stands between two marks is renewed, all else stays as it is."""

from collections.abc import Iterable
from pathlib import Path

from customdiff_core.artifacts import write_atomic
from customdiff_core.errors import ConfigError


def renew(page: Path, mark: str, lines: Iterable[str]) -> None:
    """Write lines between a page's `<!-- mark -->` and `<!-- /mark -->`.

    Raises:
        ConfigError: if the page has not both of them, in this order.
    """
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ConfigError(f"{page}: found no {start} ... {end}, need both marks around the table; add them")
    text = "\n".join(lines)
    write_atomic(page, f"{before}{start}\n{text}\n{end}{after}".encode())
