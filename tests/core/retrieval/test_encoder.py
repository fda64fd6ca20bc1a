import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from customdiff_core import images
from customdiff_core.config import Runtime
from customdiff_core.errors import WeightsError
from customdiff_core.profiles import EncoderSource
from customdiff_core.retrieval.encoder import Encoder
from customdiff_core.settings import Settings
from customdiff_core.world.drawings import load_drawings
from customdiff_core.world.scenes import render_scene, sample_scenes


@pytest.fixture(scope="module")
def encoder(openmoji) -> Encoder:
    return Encoder(openmoji.judge, Runtime().device, batch_size=3)


def test_vectors_are_unit_and_float32_in_one_space(encoder: Encoder, cat):
    pictures = [images.decode(cat.read(one), one.name) for one in cat.images]
    texts, seen = encoder.texts(["a cat", "a dog", "a rocket", "a pizza"]), encoder.images(pictures)
    assert texts.dtype == seen.dtype == np.float32
    assert (len(texts), len(seen)) == (4, 6)
    assert texts.shape[1] == seen.shape[1]
    for vectors in (texts, seen):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_batch_does_not_matter(encoder: Encoder, openmoji):
    words = ["a cat", "a dog", "a rocket", "a pizza", "a house"]
    np.testing.assert_allclose(encoder.texts(words), Encoder(openmoji.judge, "cpu").texts(words), atol=1e-5)


def test_nothing_gives_nothing(encoder: Encoder):
    assert len(encoder.texts([])) == 0


def test_a_scene_is_nearer_to_its_own_caption_than_to_others(encoder: Encoder, openmoji):
    """The real weights are loaded: with random ones, 8 % of 12 would be right."""
    drawings = load_drawings(Settings().data / "world" / "drawings.csv")
    scenes = sample_scenes(drawings, 12, 3, purpose="a test of the encoder")
    similarity = encoder.images(render_scene(one) for one in scenes) @ encoder.texts([one.caption for one in scenes]).T
    assert (similarity.argmax(axis=1) == np.arange(12)).mean() >= 0.75


def test_an_encoder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        WeightsError, match=r"found no openmoji-clip\.json, need an open_clip model folder; copy it again"
    ):
        Encoder(EncoderSource(model="openmoji-clip", path=tmp_path), "cpu")


@pytest.mark.parametrize("quick", [True, False])
def test_a_tags_weights_are_run_with_the_activation_they_were_trained_with(empty_hub, monkeypatch, quick: bool):
    """OpenAI's CLIPs are QuickGELU's, and their models' configs are not: open_clip would only warn."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    tag = {"hf_hub": "some/tiny/", "quick_gelu": quick, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"openai": tag})
    torch.manual_seed(0)
    trained = open_clip.CLIP(**config, quick_gelu=quick).eval()
    with torch.no_grad():
        for block in (*trained.transformer.resblocks, *trained.visual.transformer.resblocks):
            block.mlp.c_fc.weight.mul_(20)  # where the two activations differ
    empty_hub("some/tiny", {"open_clip_model.safetensors": save(trained.state_dict())})
    encoder = Encoder(EncoderSource(model="tiny", tag="openai"), "cpu")
    words = open_clip.get_tokenizer("ViT-B-32")(["a cat", "a dog"])
    picture = Image.new("RGB", (32, 32), (200, 100, 50))
    pixels = (torch.tensor([200, 100, 50]) / 255 - torch.tensor(tag["mean"])) / torch.tensor(tag["std"])
    with torch.no_grad():
        texts = trained.encode_text(words, normalize=True)
        seen = trained.encode_image(pixels.view(1, 3, 1, 1).expand(1, 3, 32, 32), normalize=True)
    np.testing.assert_allclose(encoder.texts(["a cat", "a dog"]), texts, atol=1e-5)
    np.testing.assert_allclose(encoder.images([picture]), seen, atol=1e-5)
