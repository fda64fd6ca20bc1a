"""`prefect deployment run compose/cat-dog`, really: two trainings, the merge, the pair's figures and its page."""

import sys
from typing import Any

import httpx
import pytest

from customdiff_core import delta as deltas
from customdiff_core import profiles, tables
from customdiff_core.config import IndexConfig
from customdiff_core.retrieval.retrieve import build_index

from .conftest import Stack

pytestmark = pytest.mark.e2e
CUSTOMDIFF = (sys.executable, "-m", "deployments.cli")
PAIR = {
    "train": {"steps": 5, "batch_size": 2},
    "evaluate": {
        "prompts": ["a {0} and a {1}", "a {1} and a {0} on a red background"],
        "seeds": 2,
        "sample": {"steps": 4, "guidance_scale": 4},
    },
}


@pytest.fixture(scope="module")
def pair(stack: Stack) -> dict[str, Any]:
    """A run's parameters, with a small index: that of 10,000 scenes is built in other tests."""
    index = build_index(profiles.get("openmoji"), IndexConfig(scenes=1200), store=stack.store)
    return PAIR | {"model": {"index": str(stack.store.path(index))}}


@pytest.fixture(scope="module")
def composed(stack: Stack, pair: dict[str, Any]) -> dict[str, Any]:
    return stack.wait(stack.start("compose/cat-dog", **pair))


def test_it_trains_what_is_missing_merges_and_shows_the_pair(stack: Stack, composed: dict[str, Any]) -> None:
    assert composed["state_type"] == "COMPLETED", composed["state"]["message"]
    shown = stack.artifacts(composed["id"])
    assert {"cat-finetune", "dog-finetune", "merge", "cat-dog-evaluate", "cat-dog-report"} <= set(shown)
    assert "Words that are no constraints" in shown["merge"]
    assert "data:image/" in shown["cat-dog-evaluate"]
    report = stack.store.newest("report", concept="cat+dog")
    page = httpx.get(f"{stack.files_url}/report/{report.key}/report.html").text
    assert "the teal cat and the purple dog, in one model" in page
    merged = stack.store.newest("delta", concept="cat+dog")
    delta = deltas.load(stack.store.path(merged) / deltas.FILE)
    assert set(delta.tokens) == {"<teal-cat>", "<purple-dog>"}
    assert (tables.read(stack.store, merged, "merge")["constraint_error_cast"] < 1e-5).all()


def test_again_it_is_all_cached_and_a_strength_solves_anew_without_training(
    stack: Stack, pair: dict[str, Any], composed: dict[str, Any]
) -> None:
    again = stack.start("compose/cat-dog", **pair)
    other = stack.start("compose/cat-dog", **pair, merge={"strengths": [1.0, 0.5]})
    stack.wait(again)
    assert set(stack.task_states(again).values()) == {"Cached"}
    stack.wait(other)
    states = stack.task_states(other)
    assert {name for name, state in states.items() if state == "Completed"} == {
        "merge",
        "evaluate-together",
        "report-together",
    }


def test_a_file_of_another_program_joins_and_the_command_line_sees_the_same_store(
    stack: Stack, pair: dict[str, Any], composed: dict[str, Any]
) -> None:
    path = stack.folder / "teddy.bin"
    converted = stack.command(*CUSTOMDIFF, "convert", "dog", str(path), "--to", "authors")
    assert converted.returncode == 0, converted.stdout + converted.stderr
    imported = {"tokens": ["<other-dog>"], "categories": ["dog"]}
    parameters = {"deltas": ["cat", str(path)], "imported": imported, "model": pair["model"]}
    run = stack.wait(stack.start("merge/stage", **parameters))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    key = next(
        one
        for one in stack.store.manifests("delta")
        if run["id"] in one.producer and one.recipe.labels["way"] == "merge"
    )
    inspected = stack.command(*CUSTOMDIFF, "inspect", str(stack.store.path(key.artifact) / deltas.FILE))
    assert inspected.returncode == 0, inspected.stdout
    assert "<other-dog> dog" in inspected.stdout


def test_a_bad_composition_is_said_by_the_run(stack: Stack, pair: dict[str, Any]) -> None:
    """By the task that takes the file in; what the flow itself says before, its own tests have."""
    finished = stack.wait(stack.start("compose/cat-dog", **(pair | {"compose": ["cat", "/none/x.bin"]})))
    assert finished["state_type"] == "FAILED"
    assert "x.bin: found no file" in finished["state"]["message"]
