"""The run form: empty fields take the profile's values, misspelt ones are refused."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from customdiff_core import concepts, profiles
from customdiff_core.benchmark.protocol import Together
from customdiff_core.benchmark.protocol import load as load_protocol
from customdiff_core.benchmark.search import load as load_search
from customdiff_core.config import FinetuneConfig, SampleConfig
from customdiff_core.errors import ConfigError, WeightsError
from customdiff_core.finetuning import methods
from customdiff_core.settings import REPOSITORY
from flows.options import (
    AugmentOptions,
    BenchmarkOptions,
    EvaluateOptions,
    GenerateOptions,
    MergeOptions,
    ModelOptions,
    RetrieveOptions,
    SearchOptions,
    TrainOptions,
)


def test_empty_fields_take_the_profiles_values() -> None:
    profile = profiles.get("openmoji")
    assert TrainOptions().resolve(profile) == profile.finetune
    assert EvaluateOptions().resolve(profile) == profile.evaluate
    assert RetrieveOptions().resolve(profile) == profile.retrieve


def test_stated_fields_win() -> None:
    profile = profiles.get("openmoji")
    assert TrainOptions(steps=7, learning_rate=1e-4).resolve(profile).steps == 7
    assert TrainOptions(steps=7, learning_rate=1e-4).resolve(profile).learning_rate == 1e-4
    evaluation = EvaluateOptions(seeds=3, kid_images=50, sample=GenerateOptions(steps=9)).resolve(profile)
    assert (evaluation.seeds, evaluation.kid_images, evaluation.kid_subset_size) == ((0, 1, 2), 50, 50)
    assert evaluation.sample == profile.evaluate.sample.model_copy(update={"steps": 9})


def test_the_least_side_of_an_image_is_the_profiles_or_what_is_stated() -> None:
    assert RetrieveOptions().resolve(profiles.get("sd14")).min_side == 256
    assert RetrieveOptions(min_side=300).resolve(profiles.get("sd14")).min_side == 300


def test_the_form_has_every_setting_of_drawing() -> None:
    assert set(GenerateOptions.model_fields) == set(SampleConfig.model_fields)
    assert GenerateOptions(precision="bf16").resolve(profiles.get("openmoji")).precision == "bf16"


def test_the_form_has_every_setting_of_a_training() -> None:
    assert set(TrainOptions.model_fields) == set(FinetuneConfig.model_fields)
    stated = {
        "instance_weight": 1.0,
        "weight_decay": 0.0,
        "gradient_clip": 2.0,
        "ema_decay": 0.5,
        "detach_bos": False,
        "preview_prompts": ["a {} on the moon"],
        "preview_every": 7,
    }
    config = TrainOptions.model_validate(stated).resolve(profiles.get("openmoji"))
    assert config.model_dump(include=set(stated)) == stated | {"preview_prompts": ("a {} on the moon",)}
    with pytest.raises(ConfigError, match=r"train.preview_prompts: found 0 placeholders in 'a cat', need exactly one"):
        TrainOptions(preview_prompts=["a cat"]).resolve(profiles.get("openmoji"))


def test_a_method_brings_its_own_settings_and_stated_ones_win() -> None:
    profile = profiles.get("openmoji")
    assert TrainOptions(method="textual-inversion").resolve(profile) == profile.training("textual-inversion")
    assert TrainOptions(method="dreambooth", steps=3).resolve(profile).steps == 3
    sources = {name: RetrieveOptions().resolve(profile, name).regularization for name in methods.METHODS}
    assert sources == {name: method.regularization for name, method in methods.METHODS.items()}
    assert RetrieveOptions(regularization="none").resolve(profile, "dreambooth").regularization == "none"
    assert not AugmentOptions().resolve(profile, "custom-diffusion-crossattn").random_resize
    assert AugmentOptions(random_resize=True).resolve(profile, "custom-diffusion-crossattn").random_resize


def test_an_early_stop_survives_the_form() -> None:
    options = TrainOptions.model_validate({"early_stop": {"views": 4}})
    resolved = options.resolve(profiles.get("openmoji"))
    assert resolved.early_stop is not None
    assert (resolved.early_stop.views, resolved.early_stop.every) == (4, 50)


def test_there_is_a_strength_for_each_concept() -> None:
    profile = profiles.get("openmoji")
    assert MergeOptions().resolve(profile, 3) == (profile.merge, (profile.strength,) * 3)
    assert MergeOptions().resolve(profiles.get("sd14"), 2)[1] == (1.0, 1.0)  # the paper's
    config, strengths = MergeOptions(strengths=[1, 0.5], ridge=0.1, prompts=["a {}"]).resolve(profile, 2)
    assert (config.ridge, config.prompts, strengths) == (0.1, ("a {}",), (1.0, 0.5))
    with pytest.raises(ConfigError, match="strengths: found 1, need 2, one for each concept; or leave them out"):
        MergeOptions(strengths=[1]).resolve(profile, 2)


def test_a_misspelt_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="stpes"):
        TrainOptions.model_validate({"stpes": 7})


def test_a_profile_that_this_machine_cannot_run_says_all_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="profile sd14 cannot run on this machine") as caught:
        ModelOptions(profile="sd14").resolve(search=True, judge=True, measure=True)
    for words in ("CompVis/stable-diffusion-v1-4", "about 4 GB", "retrieval index: found none", "validation images"):
        assert words in str(caught.value)


def test_every_concept_and_every_stage_has_a_described_deployment() -> None:
    deployments = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    customize = {one["name"]: one for one in deployments if one["entrypoint"] == "flows/customize.py:customize"}
    assert set(customize) == set(concepts.names())
    assert all(one["parameters"] == {"concept": name} for name, one in customize.items())
    flows = {Path(one["entrypoint"].split(":")[0]).stem for one in deployments}
    verbs = {path.stem for path in (REPOSITORY / "flows").glob("*.py")} - {"__init__", "options", "inputs", "together"}
    assert flows == verbs
    assert all(one["description"] and one["tags"] for one in deployments)


def test_retrieval_can_be_pointed_elsewhere_and_told_what_a_link_may_cost() -> None:
    options = RetrieveOptions.model_validate(
        {"regularization": "generated", "fetch": {"deadline_s": 3}, "backend": {"index_name": "laion"}}
    )
    config = options.resolve(profiles.get("openmoji"))
    assert (config.regularization, config.fetch.deadline_s, config.backend.index_name) == ("generated", 3, "laion")
    model = ModelOptions(backend="http://localhost:1234").resolve()
    assert (model.corpus.source, model.corpus.backend) == ("backend", "http://localhost:1234")


def test_a_protocol_takes_what_is_stated_and_is_checked() -> None:
    plain = BenchmarkOptions().resolve("openmoji-nightly", profiles.get("openmoji"))
    assert plain == load_protocol("openmoji-nightly")
    changed = BenchmarkOptions(seeds=3, rows=["joint"], together=[Together(concepts=("a", "b"))]).resolve(
        "openmoji-nightly", profiles.get("openmoji")
    )
    assert (changed.seeds, changed.rows, changed.name) == (3, ("joint",), "openmoji-nightly")
    assert changed.concepts == plain.concepts
    with pytest.raises(ConfigError, match="row: found 'jiont'"):
        BenchmarkOptions(rows=["jiont"]).resolve("openmoji-nightly", profiles.get("openmoji"))
    with pytest.raises(ConfigError, match=f"found kid_subset_size {plain.kid_subset_size}, need at most kid_images 8"):
        BenchmarkOptions(kid_images=8).resolve("openmoji-nightly", profiles.get("openmoji"))


def test_what_is_stated_begins_a_history_of_its_own() -> None:
    profile = profiles.get("openmoji")
    one, same, other = (
        BenchmarkOptions(seeds=seeds).resolve("openmoji-nightly", profile).stated for seeds in (3, 3, 4)
    )
    assert one == same != other
    assert "" not in (one, other)


def test_held_out_images_of_one_category_are_no_others(tmp_path: Path) -> None:
    path = tmp_path / "cats.parquet"
    path.touch()
    profile = profiles.get("openmoji", validation=path)
    with pytest.raises(
        ConfigError, match=r"found one file, cats\.parquet, for 3 categories \(cat, dog, teddy bear\), need"
    ):
        BenchmarkOptions().resolve("openmoji-nightly", profile)
    BenchmarkOptions(concepts=["cat"]).resolve("openmoji-nightly", profile)
    BenchmarkOptions().resolve("openmoji-nightly", profiles.get("openmoji", validation=tmp_path))


def test_how_images_are_drawn_is_filled_field_by_field() -> None:
    profile = profiles.get("sd14")
    changed = BenchmarkOptions(sample=GenerateOptions(steps=50)).resolve("openmoji-nightly", profile)
    assert changed.sample == profile.evaluate.sample.model_copy(update={"steps": 50})
    stated = SearchOptions(sample=GenerateOptions(eta=0.5)).resolve("openmoji-custom-diffusion", profile)
    assert stated.sample == profile.evaluate.sample.model_copy(update={"eta": 0.5})


def test_a_search_takes_what_is_stated_and_is_checked() -> None:
    profile = profiles.get("openmoji")
    plain = SearchOptions().resolve("openmoji-custom-diffusion", profile)
    assert plain == load_search("openmoji-custom-diffusion")
    changed = SearchOptions(trials=[{"steps": [5, 6]}], tested=[]).resolve("openmoji-custom-diffusion", profile)
    assert (changed.trials, changed.tested, changed.concept) == (({"steps": 5}, {"steps": 6}), (), plain.concept)
    assert changed.stated
    assert not plain.stated
    for options, words in (
        (SearchOptions(concept="dog"), "found dog and the test on dog, car, need each concept once"),
        (SearchOptions(row="merged"), "found the row merged, need one that learns one concept"),
        (SearchOptions(kid_images=20), "found kid_subset_size 30, need at most kid_images 20"),
    ):
        with pytest.raises(ConfigError, match=words):
            options.resolve("openmoji-custom-diffusion", profile)
    with pytest.raises(ValidationError, match="stpes"):
        SearchOptions(trials=[{"stpes": 3}]).resolve("openmoji-custom-diffusion", profile)


def test_encoders_that_are_not_there_are_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"(?s)none: found no config.json.*none.pth: found no file"):
        ModelOptions(dino=tmp_path / "none", inception=tmp_path / "none.pth").resolve(measure=True)


def test_the_benchmarks_deployments_name_protocols_that_there_are_and_one_has_a_schedule() -> None:
    declared = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    mine = {one["name"]: one for one in declared if one["entrypoint"].endswith(":benchmark")}
    assert set(mine) == {"quick", "nightly", "paper-sd14"}
    for one in mine.values():
        assert load_protocol(one["parameters"]["protocol"])
    assert mine["nightly"]["schedules"] == [{"cron": "0 3 * * *", "timezone": "UTC", "active": True}]
    assert ModelOptions(**mine["paper-sd14"]["parameters"]["model"]).profile == "sd14"
