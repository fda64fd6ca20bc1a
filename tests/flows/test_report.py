"""What the flow `report` asks for; no page is written."""

from pathlib import Path
from typing import Any

import pytest

from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.recipes import Recipe
from flows.report import report


def test_an_evaluation_whose_training_is_gone_is_left_to_the_page_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which stages' artifacts are missing, and what to run."""
    monkeypatch.setenv("CUSTOMDIFF_STORE", str(tmp_path / "store"))
    recipe = Recipe(kind="metrics", inputs={"delta": "removed"}, config={"prompts": ["a {}"]}, code="0", versions={})
    metrics = Store().make(recipe, lambda folder: 0)
    asked: list[tuple[str, dict[str, Artifact]]] = []

    def page(concept: Concept, chain: dict[str, Artifact], profile: Any) -> Artifact:
        asked.append((concept.name, chain))
        return metrics

    monkeypatch.setattr("tasks.report.report", page)
    monkeypatch.setattr("tasks.publish.reported", lambda concepts, page: None)
    report.fn("cat", metrics.key)
    assert asked == [("cat", {"metrics": metrics})]
