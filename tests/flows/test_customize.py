"""Which trainings `customize` asks for, of one concept, several together, and one after the other; nothing is trained."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from customdiff_core.artifacts import Artifact
from flows.customize import customize
from flows.options import EvaluateOptions, TrainOptions


def artifact(name: str) -> Artifact:
    return Artifact(kind=name.split(maxsplit=1)[0], key=name, sha256=name, rows=1)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The stages in order, with what matters of their inputs; each training is called by its number."""
    monkeypatch.setenv("CUSTOMDIFF_STORE", str(tmp_path / "store"))
    found: list[tuple[str, Any]] = []

    def prepared(concept: Any, *rest: Any) -> Artifact:
        return artifact(f"training_set {concept.name}")

    def finetuned(wanted: Any, sets: Any, profile: Any, config: Any, runtime: Any, parent: Any = None) -> Artifact:
        found.append(
            ("train", ([one.name for one in wanted], [one.key for one in sets], parent and parent.key, config.steps))
        )
        return artifact(f"delta {len(found)}")

    def evaluated(concept: Any, delta: Artifact, *rest: Any) -> Artifact:
        found.append(("evaluate", (concept.name, delta.key)))
        return artifact("metrics")

    def shown_together(wanted: Any, subjects: Any, prompts: Any, *rest: Any) -> Artifact:
        found.append(("show", ([one.name for one in wanted], {way: one.key for way, one in subjects.items()}, prompts)))
        return artifact("report together")

    def reported(*_: Any) -> Artifact:
        return artifact("report")

    def store() -> Any:
        def lineage(_: Artifact) -> dict[str, Artifact]:
            return {}

        return SimpleNamespace(lineage=lineage)

    module = importlib.import_module("flows.customize")
    for one in (prepared, finetuned, evaluated, reported, shown_together, store):
        monkeypatch.setattr(module, one.__name__, one)
    return found


def test_one_concept_is_trained_and_measured(calls: list[tuple[str, Any]]) -> None:
    assert customize.fn("cat", train=TrainOptions(steps=7)) == artifact("report")
    assert calls == [("train", (["cat"], ["training_set cat"], None, 7)), ("evaluate", ("cat", "delta 1"))]


def test_a_joint_training_has_every_concept_and_its_set(calls: list[tuple[str, Any]]) -> None:
    made = customize.fn("cat", ["dog"], train=TrainOptions(steps=7), evaluate=EvaluateOptions(prompts=["{0} and {1}"]))
    assert made == artifact("report together")
    assert calls == [
        ("train", (["cat", "dog"], ["training_set cat", "training_set dog"], None, 7)),
        ("show", (["cat", "dog"], {"joint": "delta 1"}, ("{0} and {1}",))),
    ]


def test_in_a_sequence_each_training_goes_on_from_the_one_before(calls: list[tuple[str, Any]]) -> None:
    customize.fn("cat", ["dog", "car"], way="sequential", train=TrainOptions(steps=7))
    assert [of for stage, of in calls if stage == "train"] == [
        (["cat"], ["training_set cat"], None, 7),
        (["dog"], ["training_set dog"], "delta 1", 7),
        (["car"], ["training_set car"], "delta 2", 7),
    ]
    assert calls[-1][1][:2] == (["cat", "dog", "car"], {"sequential": "delta 3"})
