import numpy as np
import pytest

from customdiff_core.evaluation.intervals import crossed_bootstrap


def table(rng: np.random.Generator, prompts: int = 12, seeds: int = 8) -> np.ndarray:
    """Scores with mean 0 whose prompts and seeds have effects of their own."""
    effects = rng.normal(0, 1, (prompts, 1)) + rng.normal(0, 0.5, (1, seeds))
    return effects + rng.normal(0, 1, (prompts, seeds))


def test_it_covers_the_true_mean_about_as_often_as_it_says():
    covered = 0
    for number in range(200):
        rng = np.random.default_rng(number)
        low, high = crossed_bootstrap(table(rng), 200, 0.95, rng)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_it_respects_that_a_prompts_images_hang_together():
    """The interval of a mean over independent numbers would be far too narrow."""
    rng = np.random.default_rng(0)
    scores = np.repeat(rng.normal(0, 1, (12, 1)), 50, axis=1)
    low, high = crossed_bootstrap(scores, 500, 0.95, rng)
    naive = 2 * 1.96 * scores.std() / np.sqrt(scores.size)
    assert high - low > 3 * naive


def test_more_confidence_is_wider_and_contains_the_mean():
    scores = table(np.random.default_rng(3))
    narrow, wide = (crossed_bootstrap(scores, 1000, share, np.random.default_rng(0)) for share in (0.5, 0.99))
    assert wide[0] < narrow[0] < scores.mean() < narrow[1] < wide[1]


def test_equal_scores_have_no_spread():
    assert crossed_bootstrap(np.full((4, 3), 0.7), 100, 0.95, np.random.default_rng(0)) == pytest.approx((0.7, 0.7))


def test_it_repeats_for_equal_randomness():
    scores = table(np.random.default_rng(3))
    one, other = (crossed_bootstrap(scores, 100, 0.95, np.random.default_rng(7)) for _ in range(2))
    assert one == other
