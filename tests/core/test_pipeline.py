"""The stages in a row without a server: the same recipes as the flows', whichever method."""

from typing import Any

import pytest

from customdiff_core import pipeline as module
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import MergeConfig, Stated
from customdiff_core.errors import ConfigError, MissingError, ModifierTokenError, StoreError
from customdiff_core.pipeline import Pipeline


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Every stage that runs, with what matters of its inputs; nothing is trained."""
    found: list[tuple[str, Any]] = []

    def stand_in(stage: str, of: Any):
        def run(*given: Any, **named: Any) -> Artifact:
            found.append((stage, of(given, named)))
            return Artifact(kind=stage, key=f"{stage}-{len(found)}", sha256="0", rows=1)

        monkeypatch.setattr(module, stage, run)

    stand_in("build_index", lambda given, named: None)
    stand_in("retrieve", lambda given, named: (given[0].modifier_token, given[1] is not None, given[3].regularization))
    stand_in("augment", lambda given, named: (given[0].name, given[1] is not None, given[3].random_resize))
    stand_in("finetune", lambda given, named: ([one.name for one in given[0]], named["parent"] is not None))
    stand_in("merge", lambda given, named: (len(given[0]), given[1]))
    return found


def stages(calls: list[tuple[str, Any]]) -> list[str]:
    return [stage for stage, _ in calls]


@pytest.mark.parametrize(
    ("method", "before"),
    [
        ("custom-diffusion", ["build_index", "retrieve", "augment"]),
        ("custom-diffusion-crossattn", ["build_index", "retrieve", "augment"]),
        ("dreambooth", ["retrieve", "augment"]),
        ("textual-inversion", ["augment"]),
    ],
)
def test_each_method_has_its_regularization_and_its_views(
    openmoji, store: Store, calls, method: str, before: list[str]
):
    Pipeline(openmoji, store).train(["cat"], openmoji.training(method))
    assert stages(calls) == [*before, "finetune"]
    name, regularized, resized = dict(calls)["augment"]
    assert (name, regularized) == ("cat", method != "textual-inversion")
    assert resized == (method != "custom-diffusion-crossattn")
    if method == "dreambooth":
        assert dict(calls)["retrieve"] == ("ktn", False, "generated")


def test_two_concepts_of_one_rare_word_are_refused_before_anything_is_retrieved(openmoji, store: Store, calls):
    with pytest.raises(ModifierTokenError, match="rare word: found ktn in concepts 'cat' and 'car'"):
        Pipeline(openmoji, store).train(["cat", "car"], openmoji.training("dreambooth"))
    assert not calls


def test_stated_views_and_regularization_images_win(openmoji, store: Store, calls):
    retrieval = openmoji.retrieve.model_copy(update={"regularization": "generated"})
    views = openmoji.augment.model_copy(update={"random_resize": False})
    Pipeline(openmoji, store).train(["cat"], openmoji.finetune, retrieval=retrieval, views=views)
    assert stages(calls) == ["retrieve", "augment", "finetune"]
    assert dict(calls)["retrieve"] == ("<teal-cat>", False, "generated")
    assert dict(calls)["augment"] == ("cat", True, False)


def test_joint_is_one_training_and_sequential_goes_on_from_the_last(openmoji, store: Store, calls):
    pipeline, config = Pipeline(openmoji, store), openmoji.finetune
    pipeline.train(["cat", "dog"], config)
    assert [of for stage, of in calls if stage == "finetune"] == [(["cat", "dog"], False)]
    calls.clear()
    pipeline.train(["cat", "dog"], config, sequential=True)
    assert [of for stage, of in calls if stage == "finetune"] == [(["cat"], False), (["dog"], True)]


def test_compose_trains_every_concept_and_merges_them(openmoji, store: Store, calls):
    Pipeline(openmoji, store).compose(["cat", "dog"], [1.0, 0.5], openmoji.finetune, MergeConfig())
    assert stages(calls).count("finetune") == 2
    assert calls[-1] == ("merge", (2, (1.0, 0.5)))


def test_what_is_stated_of_several_files_is_shared_out(openmoji, store: Store, calls, monkeypatch: pytest.MonkeyPatch):
    taken: list[Any] = []
    monkeypatch.setattr(module, "import_delta", lambda path, profile, stated, store: taken.append((path.name, stated)))
    stated = Stated(tokens=("<a>", "<b>"), categories=("cat", "dog"))
    pipeline = Pipeline(openmoji, store)
    pipeline.compose(["a.bin", "teapot", "b.bin"], [1.0] * 3, openmoji.finetune, MergeConfig(), stated)
    assert taken == [
        ("a.bin", Stated(tokens=("<a>",), categories=("cat",))),
        ("b.bin", Stated(tokens=("<b>",), categories=("dog",))),
    ]
    with pytest.raises(ConfigError, match=r"imported categories: found 1 \(cat\) for 2 files, need one for each"):
        pipeline.compose(["a.bin", "b.bin"], [1.0] * 2, openmoji.finetune, MergeConfig(), Stated(categories=("cat",)))


def test_a_delta_is_a_concept_a_file_or_a_key(openmoji, store: Store, calls, monkeypatch: pytest.MonkeyPatch, tmp_path):
    taken: list[Any] = []
    monkeypatch.setattr(module, "import_delta", lambda path, profile, stated, store: taken.append((path.name, stated)))
    pipeline, stated = Pipeline(openmoji, store), Stated(tokens=("<x>",))
    pipeline.delta("cat", openmoji.finetune)
    assert stages(calls)[-1] == "finetune"
    pipeline.delta(str(tmp_path / "teddybear.bin"), openmoji.finetune, stated)
    assert taken == [("teddybear.bin", stated)]
    with pytest.raises(StoreError, match=f"delta {'0' * 32}: found nothing there, need a whole artifact"):
        pipeline.delta("0" * 32, openmoji.finetune)


def test_a_name_is_the_training_it_stands_for_unless_settings_are_given(
    openmoji, store: Store, calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    there = {"cat": Artifact(kind="delta", key="long", sha256="long", rows=1)}

    def standing(name: str, *rest: Any) -> Artifact:
        if name not in there:
            raise MissingError("none")
        return there[name]

    monkeypatch.setattr(module, "standing", standing)
    pipeline = Pipeline(openmoji, store)
    pipeline.compose(["cat", "dog"], [1.0, 1.0], None, MergeConfig())
    assert [of for stage, of in calls if stage == "finetune"] == [(["dog"], False)]
    assert caplog.messages == ["dog: not trained yet; training it now"]
    assert pipeline.delta("cat") == there["cat"]
    calls.clear()
    pipeline.compose(["cat", "dog"], [1.0, 1.0], openmoji.finetune, MergeConfig())
    assert stages(calls).count("finetune") == 2


def test_a_misspelt_part_is_said_before_the_first_training(openmoji, store: Store, calls):
    with pytest.raises(
        ConfigError, match=r"delta: found 'dgo', need a concept \(.*\), a delta's key or a file; did you mean"
    ):
        Pipeline(openmoji, store).compose(["cat", "dgo"], [1.0, 1.0], openmoji.finetune, MergeConfig())
    assert not calls


@pytest.mark.parametrize("stated", [{"config": {"prior_weight": 0.0}}, {"regularized": False}, {"retrieval": "none"}])
def test_without_regularization_nothing_is_retrieved_and_no_loss_of_it_is_weighed(
    openmoji, store: Store, calls, monkeypatch: pytest.MonkeyPatch, stated: dict[str, Any]
):
    weights: list[tuple[float, float | None]] = []
    stand_in = module.finetune

    def finetune(*given: Any, **named: Any) -> Artifact:
        weights.append((given[3].prior_weight, given[3].learning_rate))
        return stand_in(*given, **named)

    monkeypatch.setattr(module, "finetune", finetune)
    config = openmoji.finetune.model_copy(update=stated.get("config", {}))
    kind = stated.get("retrieval")
    retrieval = openmoji.retrieve.model_copy(update={"regularization": kind}) if kind else None
    Pipeline(openmoji, store).train(["cat"], config, regularized=stated.get("regularized", True), retrieval=retrieval)
    assert stages(calls) == ["augment", "finetune"]
    assert weights == [(0.0, openmoji.finetune.learning_rate)]
