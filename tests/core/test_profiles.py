from pathlib import Path

import pytest

from customdiff_core import profiles
from customdiff_core.errors import ConfigError
from customdiff_core.finetuning import methods


@pytest.mark.parametrize("name", profiles.BUILDERS)
def test_every_profile_builds_under_its_own_name(name: str):
    profile = profiles.get(name)
    assert profile.name == name
    assert profile.augment.resolution in {64, 512, 768, 1024}


def test_a_regularization_image_has_half_of_the_resolution_at_least():
    found = {name: profiles.get(name) for name in profiles.BUILDERS}
    assert found.pop("openmoji").retrieve.min_side is None
    assert all(one.retrieve.min_side == one.augment.resolution // 2 for one in found.values())


def test_an_unknown_profile_names_the_nearest():
    with pytest.raises(ConfigError) as error:
        profiles.get("openmojy")
    assert (
        str(error.value)
        == "profile: found 'openmojy', need one of openmoji, sd14, sd21, sdxl; did you mean 'openmoji'?"
    )


def test_a_name_like_no_other_gets_no_hint():
    with pytest.raises(ConfigError, match=r"found 'xxxxx', need one of openmoji, sd14, sd21, sdxl$"):
        profiles.get("xxxxx")


def test_the_papers_profile_has_the_papers_numbers():
    profile = profiles.get("sd14")
    assert profile.retrieve.count == 200
    assert profile.retrieve.min_similarity == 0.85
    assert profile.finetune.steps == 500
    assert methods.get("custom-diffusion").rates(profile.finetune) == (4e-5, 4e-5)  # 1e-5 x batch 2 x 2 for the prior
    sample = profile.evaluate.sample
    assert (sample.sampler, sample.steps, sample.guidance_scale, sample.eta) == ("ddim", 200, 6.0, 1.0)
    assert (sample.precision, profile.finetune.precision) == ("bf16", "bf16")
    assert len(profile.evaluate.seeds) == 50
    assert profile.evaluate.kid_images == 500
    assert profile.judge.name == "ViT-B-32/openai"
    assert len(profile.model.revision or "") == 40


def test_folders_replace_the_profiles_own():
    profile = profiles.get("sd14", model=Path("/m"), index=Path("/i"), validation=Path("/v"))
    assert profile.model.path == Path("/m")
    assert profile.model.hub_id == "CompVis/stable-diffusion-v1-4"
    assert (profile.corpus.index, profile.corpus.validation) == (Path("/i"), Path("/v"))


def test_validation_images_alone_keep_the_corpus():
    profile = profiles.get("openmoji", validation=Path("/v"))
    assert (profile.corpus.kind, profile.corpus.index, profile.corpus.validation) == ("openmoji", None, Path("/v"))


def test_the_embedded_profile_follows_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CUSTOMDIFF_DATA", str(tmp_path))
    assert profiles.get("openmoji").model.path == tmp_path / "models" / "openmoji" / "openmoji-sd"


def test_the_source_is_what_was_given_last_of_all_the_embedded_one():
    assert profiles.get("openmoji").corpus.source == "embedded"
    assert profiles.get("openmoji", index=Path("/i")).corpus.source == "local"
    assert profiles.get("openmoji", index=Path("/i"), backend="http://b").corpus.source == "backend"
    assert profiles.get("sd14").corpus.source == "local"
    assert profiles.get("openmoji", index=Path("/i")).corpus.kind == "openmoji"  # whose held-out scenes stay the KID's
