import numpy as np
import pytest

from customdiff_core.evaluation.alignment import image_alignment, nearest_similarity, text_alignment


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(float), other.astype(float)
    return sum(a * b for a, b in zip(one, other, strict=True)) / (sum(one**2) * sum(other**2)) ** 0.5


IMAGES, TARGETS = unit(7, 16, 0), unit(3, 16, 1)


def test_text_alignment_is_clipscore_of_each_image_with_its_own_prompt():
    prompts = unit(7, 16, 2)
    expected = [2.5 * max(cosine(image, prompt), 0) for image, prompt in zip(IMAGES, prompts, strict=True)]
    assert text_alignment(IMAGES, prompts) == pytest.approx(expected, abs=1e-6)
    assert min(expected) == 0  # a negative cosine is among them
    assert max(expected) > 0


def test_the_papers_figure_is_a_cosine_of_0_318():
    image = np.array([[1.0, 0]])
    prompt = np.array([[0.318, np.sqrt(1 - 0.318**2)]])
    assert text_alignment(image, prompt) == pytest.approx(0.795)


def test_image_alignment_is_the_mean_over_all_targets():
    expected = [np.mean([cosine(image, target) for target in TARGETS]) for image in IMAGES]
    assert image_alignment(IMAGES, TARGETS) == pytest.approx(expected, abs=1e-6)


def test_nearest_similarity_is_the_largest():
    expected = [max(cosine(image, target) for target in TARGETS) for image in IMAGES]
    assert nearest_similarity(IMAGES, TARGETS) == pytest.approx(expected, abs=1e-6)
    assert nearest_similarity(TARGETS, TARGETS) == pytest.approx(1, abs=1e-6)  # a copy is a 1
