import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from customdiff_core import images
from customdiff_core.config import Runtime
from customdiff_core.errors import EvaluationError, WeightsError
from customdiff_core.evaluation.judge import Judge
from customdiff_core.profiles import Profile, get


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT with random weights, as transformers saves one."""
    path = tmp_path_factory.mktemp("dino") / "vit-test"
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    return [images.encode(Image.fromarray(one)) for one in pixels]


def judge(folder: Path, store) -> Judge:
    return Judge(get("openmoji", dino=folder), store, Runtime(device="cpu"))


def test_a_picture_is_its_normalised_class_token(folder: Path, store) -> None:
    found = judge(folder, store).dino_images(pictures())
    model, preprocess = (
        ViTModel.from_pretrained(folder, add_pooling_layer=False).eval(),
        ViTImageProcessor.from_pretrained(folder),
    )
    opened = [images.open_trusted(one) for one in pictures()]
    with torch.no_grad():
        token = model(**preprocess(opened, return_tensors="pt")).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(found, token / np.linalg.norm(token, axis=1, keepdims=True), atol=1e-6)


def test_its_vectors_are_not_those_of_clip_and_are_kept(folder: Path, store, monkeypatch: pytest.MonkeyPatch) -> None:
    one = judge(folder, store)
    found = one.dino_images(pictures())
    assert one.images(pictures()).shape[1] != found.shape[1]
    monkeypatch.setattr("customdiff_core.evaluation.judge.Dino", None)
    np.testing.assert_array_equal(judge(folder, store).dino_images(pictures()), found)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, store, tmp_path: Path, name: str) -> None:
    for path in folder.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match=f"found no {name}, need a folder of a transformers ViT"):
        judge(tmp_path, store).dino_images(pictures())


def test_a_profile_without_one_says_so(openmoji: Profile, store) -> None:
    profile = openmoji.model_copy(update={"dino": None})
    with pytest.raises(EvaluationError, match=r"found no DINO encoder, need one; give it as model\.dino"):
        Judge(profile, store, Runtime(device="cpu")).dino_images(pictures())


def test_a_folders_own_program_is_not_run(folder: Path, store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to whoever asks whether it may
    hostile = Path(shutil.copytree(folder, tmp_path / "vit"))
    config = json.loads((hostile / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (hostile / "config.json").write_text(json.dumps(config))
    (hostile / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    with pytest.raises(ValueError, match=r"trust_remote_code|does not recognize"):
        judge(hostile, store).dino_images(pictures())
    assert not (tmp_path / "ran").exists()
