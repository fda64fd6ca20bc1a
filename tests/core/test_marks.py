"""Tables in pages of text."""

from pathlib import Path

import pytest

from customdiff_core.errors import ConfigError
from customdiff_core.marks import renew


def test_what_stands_between_the_marks_is_renewed_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Größe\n<!-- one -->\nold\n<!-- /one -->\n<!-- two -->\nkept\n<!-- /two -->\nend\n", encoding="utf-8"
    )
    renew(page, "one", ["| a |", "|---|"])
    wanted = "# Größe\n<!-- one -->\n| a |\n|---|\n<!-- /one -->\n<!-- two -->\nkept\n<!-- /two -->\nend\n"
    assert page.read_text(encoding="utf-8") == wanted
    renew(page, "one", ["| a |", "|---|"])
    assert page.read_text(encoding="utf-8") == wanted


@pytest.mark.parametrize("text", ["", "<!-- one -->\nold", "<!-- /one -->\n<!-- one -->", "<!-- two --><!-- /two -->"])
def test_a_page_without_both_marks_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ConfigError, match=r"page\.md: found no <!-- one --> \.\.\. <!-- /one -->, need both marks"):
        renew(page, "one", ["new"])
    assert page.read_text() == text
