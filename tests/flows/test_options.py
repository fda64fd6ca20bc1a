"""The run form: empty fields take the profile's values, misspelt ones are refused."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from customdiff_core import concepts, profiles
from customdiff_core.benchmark.protocol import Together
from customdiff_core.benchmark.protocol import load as load_protocol
from customdiff_core.config import SampleConfig
from customdiff_core.errors import ConfigError, WeightsError
from customdiff_core.finetuning import methods
from customdiff_core.settings import REPOSITORY
from flows.options import (
    AugmentOptions,
    BenchmarkOptions,
    EvaluateOptions,
    MergeOptions,
    ModelOptions,
    RetrieveOptions,
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
    sample = SampleConfig(steps=9)
    evaluation = EvaluateOptions(seeds=3, kid_images=50, sample=sample).resolve(profile)
    assert (evaluation.seeds, evaluation.kid_images, evaluation.kid_subset_size) == ((0, 1, 2), 50, 50)
    assert evaluation.sample == sample


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
    assert MergeOptions().resolve(profile, 3) == (profile.merge, (1.0, 1.0, 1.0))
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
        ModelOptions(profile="sd14").resolve()
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
    plain = BenchmarkOptions().resolve("openmoji-nightly")
    assert plain == load_protocol("openmoji-nightly")
    changed = BenchmarkOptions(seeds=3, rows=["joint"], together=[Together(concepts=("a", "b"))]).resolve(
        "openmoji-nightly"
    )
    assert (changed.seeds, changed.rows, changed.name) == (3, ("joint",), "openmoji-nightly")
    assert changed.concepts == plain.concepts
    with pytest.raises(ConfigError, match="row: found 'jiont'"):
        BenchmarkOptions(rows=["jiont"]).resolve("openmoji-nightly")
    with pytest.raises(ConfigError, match="found kid_subset_size 100, need at most kid_images 8"):
        BenchmarkOptions(kid_images=8).resolve("openmoji-nightly")


def test_the_benchmarks_deployments_name_protocols_that_there_are_and_one_has_a_schedule() -> None:
    declared = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    mine = {one["name"]: one for one in declared if one["entrypoint"].endswith(":benchmark")}
    assert set(mine) == {"quick", "nightly", "paper-sd14"}
    for one in mine.values():
        assert load_protocol(one["parameters"]["protocol"])
    assert mine["nightly"]["schedules"] == [{"cron": "0 3 * * *", "timezone": "UTC", "active": True}]
    assert ModelOptions(**mine["paper-sd14"]["parameters"]["model"]).profile == "sd14"
