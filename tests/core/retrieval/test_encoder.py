import numpy as np
import pytest

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
