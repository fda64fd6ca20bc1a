"""What `compose` and `merge` check before they train, and what they do with what is there already; nothing is trained."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.errors import ConceptError, ConfigError, MergeError, ModifierTokenError, StoreError
from customdiff_core.lineage import Taught
from flows.compose import compose
from flows.customize import customize
from flows.inputs import as_taught, called_in
from flows.merge import merge
from flows.options import EvaluateOptions, MergeOptions, TrainOptions

from ..handmade import knowing, table

MERGED = Artifact(kind="delta", key="merged", sha256="merged", rows=1)
PAGE = Artifact(kind="report", key="page", sha256="page", rows=1)
CAT = Taught(name="cat", category="cat", modifier_token="<teal-cat>", initializer_token="ktn")
THEIRS = Taught(name="teddy", category="bear", modifier_token="<teddy>")
NAMELESS = Taught(name="new1", modifier_token="<new1>")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that the flows open."""
    monkeypatch.setenv("CUSTOMDIFF_STORE", str(tmp_path / "store"))
    return Store(tmp_path / "store")


@pytest.fixture
def calls(here: Store, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Every part of the flow that would take time, with what matters of its inputs."""
    found: list[tuple[str, Any]] = []

    def taught(wanted: Any, *rest: Any) -> Artifact:
        found.append(("taught", [one.name for one in wanted]))
        return knowing(here, *(CAT.model_copy(update={"name": one.name}) for one in wanted))

    def merged(parts: Any, strengths: Any, profile: Any, config: Any, runtime: Any, left_out: Any = ()) -> Artifact:
        found.append(("merged", {"parts": parts, "strengths": strengths, "left_out": left_out}))
        return MERGED

    def shown_together(shown: Any, subjects: Any, prompts: Any, *rest: Any) -> Artifact:
        found.append(("shown", {"concepts": shown, "subjects": list(subjects), "prompts": prompts, "words": rest[-1]}))
        return PAGE

    module = importlib.import_module("flows.compose")

    def called_in(merged: Artifact, came: Any) -> tuple[str, ...]:
        return tuple(f"{part.sha256[:6]} {one.noun}" for part, one in came)

    for one in (taught, merged, called_in, shown_together):
        monkeypatch.setattr(module, one.__name__, one)
    return found


BAD = [
    ({"merge": MergeOptions(strengths=[1])}, ConfigError, "strengths: found 1, need 2, one for each concept"),
    ({"merge": MergeOptions(prompts=["a cat"])}, ConfigError, "merge.prompts: found 0 placeholders in 'a cat'"),
    ({"evaluate": EvaluateOptions(prompts=["a {0}"])}, ConfigError, "prompts: found 0 of {1} in 'a {0}'"),
    (
        {"evaluate": EvaluateOptions(prompts=["{0} {1} {2}"])},
        ConfigError,
        "prompts: found {2} in '{0} {1} {2}', need {0} to {1}",
    ),
    (
        {"train": TrainOptions(method="dreambooth")},
        MergeError,
        "method: found dreambooth, which trains the whole UNet, need one whose trainings can be merged (custom-diffusion, "
        "custom-diffusion-crossattn, textual-inversion); take one of them, or train the concepts jointly",
    ),
    ({"compose": ["cat", "catt"]}, ConceptError, "concept: found 'catt', need one of"),
    ({"compose": ["cat", "0" * 32]}, StoreError, f"delta {'0' * 32}: found nothing there, need a whole artifact"),
]


@pytest.mark.parametrize(("parameters", "kind", "words"), BAD)
def test_what_cannot_be_composed_is_said_before_the_first_training(
    calls: list[tuple[str, Any]], parameters: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as error:
        compose.fn(**parameters)
    assert words in str(error.value)
    assert not calls


def test_a_merge_says_it_before_it_looks_for_deltas_and_customize_before_it_trains(here: Store) -> None:
    with pytest.raises(ConfigError, match="strengths: found 1, need 2"):
        merge.fn(["cat", "dog"], merge=MergeOptions(strengths=[1]))
    with pytest.raises(ConfigError, match=r"merge.prompts: found 0 placeholders in 'a cat'"):
        merge.fn(["cat", "dog"], merge=MergeOptions(prompts=["a cat"]))
    with pytest.raises(ModifierTokenError, match="rare word: found ktn in concepts 'cat' and 'car'"):
        customize.fn("cat", ["car"], train=TrainOptions(method="dreambooth"))
    with pytest.raises(ConfigError, match=r"prompts: found 0 of \{1\} in 'a \{0\}', need each of 2 concepts once"):
        customize.fn("cat", ["dog"], evaluate=EvaluateOptions(prompts=["a {0}"]))


def test_concepts_are_trained_merged_and_shown(calls: list[tuple[str, Any]]) -> None:
    assert compose.fn(["cat", "dog"], beside_joint=True) == PAGE
    assert [stage for stage, _ in calls] == ["taught", "taught", "merged", "taught", "shown"]
    assert [of for stage, of in calls if stage == "taught"] == [["cat"], ["dog"], ["cat", "dog"]]
    assert calls[2][1]["left_out"] == ()
    assert calls[-1][1]["subjects"] == ["merged", "joint"]


def test_a_merge_is_merged_again_by_its_key_and_all_that_it_knows_is_shown(
    here: Store, calls: list[tuple[str, Any]]
) -> None:
    before = knowing(here, CAT.model_copy(update={"modifier_token": "<teal-cat-2>"}), THEIRS)
    compose.fn([before.key, "dog"], evaluate=EvaluateOptions(prompts=["{0}, {1} and {2}"]))
    found = dict(calls)
    assert found["taught"] == ["dog"]
    assert found["merged"]["parts"][0] == before
    shown = found["shown"]["concepts"]
    assert [one.noun for one in shown] == ["<teal-cat-2> cat", "<teddy> bear", "<purple-dog> dog"]
    assert [bool(one.images) for one in shown] == [True, False, True]
    parts = found["merged"]["parts"]
    assert found["shown"]["words"]["merged"] == tuple(
        f"{part.sha256[:6]} {one.noun}" for part, one in zip((parts[0], *parts), shown, strict=True)
    )
    assert found["merged"]["left_out"] == ("<teddy> bear: no image alignment, since none of its pictures are here",)


def test_a_file_is_shown_with_the_others(
    here: Store, calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = knowing(here, THEIRS)
    monkeypatch.setattr("tasks.merge.import_delta", lambda path, profile, stated: theirs)
    compose.fn(["cat", "teddy.bin"])
    found = dict(calls)
    assert [one.name for one in found["shown"]["concepts"]] == ["cat", "teddy"]
    assert found["shown"]["subjects"] == ["merged"]
    with pytest.raises(
        ConfigError, match=r"beside_joint: found teddy.bin, which cannot be trained on here, need concepts"
    ):
        compose.fn(["cat", "teddy.bin"], beside_joint=True)


def test_a_merged_model_is_asked_for_a_concept_as_it_calls_it(here: Store, cat: Concept) -> None:
    parts = [Artifact(kind="delta", key=one, sha256=one, rows=1) for one in ("a", "b")]
    rows = [
        {"part": part, "concept": name, "original_token": "<teal-cat>", "modifier_token": now}
        for part, name, now in (("a", "teal-cat", "<teal-cat-2>"), ("b", "cat", "<teal-cat>"))
    ]
    merged = table(here, "delta", {}, rows=rows)
    theirs = cat.model_copy(update={"name": "teal-cat"})
    said = called_in(merged, list(zip(parts, (theirs, cat), strict=True)))
    assert said == ("<teal-cat-2> cat", "<teal-cat> cat")


def test_a_concept_is_said_as_its_delta_calls_it(here: Store, cat: Concept) -> None:
    renamed = CAT.model_copy(update={"modifier_token": "<teal-cat-2>"})
    theirs = Taught(
        name="cat", category="cat", modifier_token="<teal-cat>"
    )  # of a file: it only happens to be called so
    assert as_taught(cat, knowing(here, theirs, renamed)).noun == "<teal-cat-2> cat"
    assert as_taught(cat, knowing(here, renamed, CAT)).noun == "<teal-cat> cat"
    assert as_taught(cat, knowing(here, CAT.model_copy(update={"modifier_token": "ktn"}))).noun == "ktn cat"
    with pytest.raises(
        ConceptError, match=r"concept cat: found a delta that was taught \{0\} .*, need one that was taught <teal"
    ):
        as_taught(cat, knowing(here, THEIRS))


def test_what_no_category_is_known_of_is_left_out_and_it_is_said(here: Store, calls: list[tuple[str, Any]]) -> None:
    nameless = knowing(here, NAMELESS)
    assert compose.fn(["cat", nameless.key]) == MERGED
    assert dict(calls)["merged"]["left_out"] == (
        "<new1>: neither drawn nor measured, since it has no category; state it in imported",
        "Nothing is drawn together: found 1 concept with a category, need 2.",
    )
    assert "shown" not in dict(calls)


def test_a_method_matters_only_where_something_is_trained(here: Store, calls: list[tuple[str, Any]]) -> None:
    keys = [knowing(here, one).key for one in (CAT, THEIRS)]
    compose.fn(keys, train=TrainOptions(method="dreambooth"))
    assert [stage for stage, _ in calls] == ["merged", "shown"]
