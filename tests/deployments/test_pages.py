"""The tables of the README, of docs and of the model card, as the programs that renew them write them."""

import re
from typing import Any

import pandas as pd
import pytest

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.finetuning.methods import METHODS
from customdiff_core.settings import REPOSITORY
from deployments import ceiling, model_card, showcase, showcase_methods

HERE = Artifact(kind="handmade", key="0" * 32, sha256="0" * 64, rows=1)
SUBJECTS = ("base", "customized", "difference")
TABLES = (
    ("README.md", "concept"),
    ("README.md", "concepts"),
    ("docs/methods.md", "methods"),
    ("docs/methods.md", "together-2"),
    ("data/models/openmoji/README.md", "figures"),
)


def marked(page: str, mark: str) -> list[str]:
    """The lines of a page between two marks."""
    found = re.search(
        rf"<!-- {mark} -->\n(.*)\n<!-- /{mark} -->", (REPOSITORY / page).read_text(encoding="utf-8"), re.S
    )
    assert found, f"{page} has no marks of {mark}"
    return found[1].split("\n")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation whose figures are made by hand."""
    values = dict.fromkeys(SUBJECTS, 0.5) | {"difference": -0.25}
    rows = [
        {"metric": metric, "subject": subject, "value": value, "ci_low": value - 0.1, "ci_high": value + 0.1}
        for metric in (*showcase.SHARES, *showcase.CHANGES, "kid")
        for subject, value in values.items()
    ]
    table = pd.DataFrame(rows).assign(n=6, extractor="openmoji-judge")
    monkeypatch.setattr(tables, "read", lambda *_: table)
    true: Any = dict.fromkeys(ceiling.FIGURES, 0.75)
    monkeypatch.setattr(ceiling, "measure", lambda *_: true)
    monkeypatch.setattr(ceiling, "true", lambda _: [])
    monkeypatch.setattr(ceiling, "through_vae", lambda drawn: drawn)


@pytest.mark.usefixtures("measured")
def test_the_readmes_tables_of_concepts(store: Store) -> None:
    first, every = list(showcase.table(HERE, store)), list(showcase.summary({"cat": HERE}, store))
    assert first[:2] == marked("README.md", "concept")[:2]
    assert "| Text alignment | 0.500 (0.400 to 0.600) | 0.500 (0.400 to 0.600) | -0.250 (-0.350 to -0.150) |" in first
    assert "| KID × 10³ | 0.500 (0.400 to 0.600) | 0.500 (0.400 to 0.600) | -0.250 (-0.350 to -0.150) |" in first
    assert every[:2] == marked("README.md", "concepts")[:2]
    shares, change = "0.50 → 0.50 / 0.75", "−0.250 (−0.350 to −0.150) / +0.250"
    assert every[2] == f"| [cat](docs/cat.webp) | {shares} | {shares} | {change} | {change} |"


def test_the_model_cards_table(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    models = ("true scenes", "true scenes, held-out drawings", model_card.THIS)
    rows = [{"model": model, "figure": "thing named", "value": 0.25} for model in models]
    rows.append({"model": model_card.THIS, "figure": "VAE PSNR, dB", "value": 28.0})
    monkeypatch.setattr(tables, "read", lambda *_: pd.DataFrame(rows))
    lines = list(model_card.table(HERE, store))
    card = marked("data/models/openmoji/README.md", "figures")
    assert lines[:2] == card[:2]
    assert lines[2:] == ["| thing named | 0.250 | 0.250 | 0.250 |", "| VAE PSNR, dB | 28.000 |  |  |"]
    assert {line.split(" | ")[0] for line in lines[2:]} <= {line.split(" | ")[0] for line in card}


def test_the_table_of_methods_has_every_method_and_figure() -> None:
    head, _, *rows = marked("docs/methods.md", "methods")
    assert head == f"| method | {' | '.join(showcase_methods.HEADS)} |"
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in (*METHODS, showcase_methods.COMPRESSED)]


def test_every_table_of_figures_stands_between_marks() -> None:
    pages = sorted(
        {*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), *REPOSITORY.glob("data/models/*/*.md")}
    )
    found = {
        (str(page.relative_to(REPOSITORY)), mark)
        for page in pages
        for mark in re.findall(r"<!-- /([a-z0-9-]+) -->", page.read_text(encoding="utf-8"))
    }
    assert found == {
        *TABLES,
        ("docs/methods.md", "together-3"),
        ("docs/results.md", "benchmark"),
        ("docs/results.md", "search"),
    }
    for page, mark in found:
        assert len([line for line in marked(page, mark) if line.startswith("|")]) > 3
