import numpy as np
import pytest

from customdiff_core.evaluation.intervals import crossed_interval, of_share, pooled_interval


def table(
    rng: np.random.Generator, trainings: float, prompts: float, seeds: float, size: tuple[int, int, int]
) -> np.ndarray:
    """Scores with mean 0 whose trainings, prompts and seeds have effects of these deviations, and an interaction."""
    first, second, third = size
    effects = rng.normal(0, trainings, (first, 1, 1)) + rng.normal(0, prompts, (1, second, 1))
    effects = effects + rng.normal(0, seeds, (1, 1, third)) + rng.normal(0, 0.1, (first, second, 1))
    return effects + rng.normal(0, 0.4, size)


@pytest.mark.parametrize(
    ("effects", "size"),
    [
        ((0.1, 0.3, 0.02), (3, 20, 8)),
        ((0.1, 0.3, 0.02), (2, 20, 8)),
        ((0.3, 0.1, 0.02), (3, 20, 8)),
        ((0.1, 0.3, 0.1), (5, 8, 8)),
        ((0.0, 0.3, 0.1), (1, 20, 8)),
        ((0.0, 0.3, 0.0), (1, 20, 8)),
    ],
)
def test_it_covers_the_true_mean_as_often_as_it_says(
    effects: tuple[float, float, float], size: tuple[int, int, int]
) -> None:
    covered = 0
    for number in range(1000):
        low, high = crossed_interval(table(np.random.default_rng(number), *effects, size), 0.95)
        covered += low <= 0 <= high
    assert 0.92 <= covered / 1000 <= 0.97


def test_trainings_that_differ_widen_it_as_resampling_them_would_not() -> None:
    scores = table(np.random.default_rng(0), 0.3, 0.1, 0.0, (3, 20, 8))
    low, high = crossed_interval(scores, 0.95)
    spread = scores.mean(axis=(1, 2)).std(ddof=1) / 3**0.5
    assert high - low > 2 * 3.5 * spread  # Student's t with 2 degrees of freedom is 4.3
    assert crossed_interval(scores[:1], 0.95)[1] - crossed_interval(scores[:1], 0.95)[0] < (high - low) / 2


def test_it_respects_that_a_prompts_images_hang_together() -> None:
    """The interval of a mean over independent numbers would be far too narrow."""
    rng = np.random.default_rng(0)
    scores = np.repeat(rng.normal(0, 1, (1, 12, 1)), 50, axis=2)
    low, high = crossed_interval(scores, 0.95)
    naive = 2 * 1.96 * scores.std() / np.sqrt(scores.size)
    assert high - low > 3 * naive


def test_more_confidence_is_wider_and_contains_the_mean() -> None:
    scores = table(np.random.default_rng(3), 0.1, 0.3, 0.1, (2, 12, 8))
    narrow, wide = (crossed_interval(scores, share) for share in (0.5, 0.99))
    assert wide[0] < narrow[0] < scores.mean() < narrow[1] < wide[1]


def test_one_axis_is_the_plain_interval_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(0, 1, 9)
    low, high = crossed_interval(values.reshape(1, 9, 1), 0.95)
    assert (high - low) / 2 == pytest.approx(2.306 * values.std(ddof=1) / 3, rel=1e-3)  # t of 8 degrees of freedom


def test_equal_scores_have_no_spread_and_one_score_says_nothing() -> None:
    assert crossed_interval(np.full((2, 4, 3), 0.7), 0.95) == pytest.approx((0.7, 0.7))
    assert crossed_interval(np.full((1, 1, 1), 0.7), 0.95) == (-np.inf, np.inf)


def concepts(rng: np.random.Generator, size: tuple[int, int, int, int]) -> np.ndarray:
    """Concepts of levels of their own, each with its trainings and prompts; the noise's seeds are the same for all."""
    first, second, third, fourth = size
    levels = np.array([0.5, -0.5, 0.3, -0.3])[:first]
    effects = levels.reshape(-1, 1, 1, 1) - levels.mean() + rng.normal(0, 0.1, (first, second, 1, 1))
    effects = effects + rng.normal(0, 0.3, (first, 1, third, 1)) + rng.normal(0, 0.05, (1, 1, 1, fourth))
    return effects + rng.normal(0, 0.4, size)


@pytest.mark.parametrize("size", [(3, 1, 20, 6), (2, 1, 8, 6)])
def test_a_first_night_takes_its_concepts_for_trainings_and_covers_what_both_bring(
    size: tuple[int, int, int, int],
) -> None:
    """One training of each: the benchmark puts the concepts in the trainings' place, which is right where they vary alike."""
    covered = 0
    for number in range(1000):
        rng = np.random.default_rng(number)
        first, _, third, fourth = size
        scores = rng.normal(0, 0.1, (first, 1, 1, 1)) + rng.normal(0, 0.3, (first, 1, third, 1))
        scores = scores + rng.normal(0, 0.05, (1, 1, 1, fourth)) + rng.normal(0, 0.4, size)
        low, high = pooled_interval(scores.swapaxes(0, 1), 0.95)
        covered += low <= 0 <= high
    assert covered / 1000 >= 0.92


def test_a_bootstrap_of_the_trainings_would_promise_too_much() -> None:
    """Why the intervals are no percentile bootstrap: of three trainings, it covers far less than it says."""
    covered = 0
    for number in range(200):
        rng = np.random.default_rng(number)
        scores = table(rng, 0.3, 0.1, 0.0, (3, 20, 8))
        means = [
            scores[rng.integers(3, size=3)][:, rng.integers(20, size=20)][:, :, rng.integers(8, size=8)].mean()
            for _ in range(200)
        ]
        low, high = np.quantile(means, [0.025, 0.975])
        covered += low <= 0 <= high
    assert covered / 200 < 0.87


@pytest.mark.parametrize("size", [(3, 2, 20, 8), (4, 3, 8, 8), (3, 5, 20, 2), (1, 3, 20, 8)])
def test_the_pooled_interval_of_these_concepts_covers_their_mean(size: tuple[int, int, int, int]) -> None:
    covered = 0
    for number in range(1000):
        low, high = pooled_interval(concepts(np.random.default_rng(number), size), 0.95)
        covered += low <= 0 <= high
    assert 0.92 <= covered / 1000 <= 0.97


def test_pooling_trainings_of_several_concepts_narrows_it() -> None:
    scores = concepts(np.random.default_rng(0), (4, 2, 20, 8))
    ends = pooled_interval(scores, 0.95)
    one = [pooled_interval(scores[number : number + 1], 0.95) for number in range(4)]
    assert ends[1] - ends[0] < min(high - low for low, high in one)


def test_a_difference_of_shares_ends_where_it_can() -> None:
    assert of_share("recognised_by_colour", 0.1, (-1.3, 1.2), (160, 20), 0.95, difference=True) == (-1.0, 1.0)
    assert of_share("text_alignment", 0.5, (-0.1, 1.2), (160, 20), 0.95) == (-0.1, 1.2)


def test_prompts_without_an_exception_leave_what_clopper_and_pearson_leave() -> None:
    assert of_share("recognised", 0.0, (0.0, 0.0), (160, 20), 0.95) == (0.0, pytest.approx(0.1684, abs=1e-4))
    assert of_share("all_present", 1.0, (1.0, 1.0), (160, 20), 0.95) == (pytest.approx(0.8316, abs=1e-4), 1.0)
    low, high = of_share("recognised", 0.0, (0.0, 0.0), (40, 5), 0.95, difference=True)
    assert (low, high) == (-high, pytest.approx(0.5218, abs=1e-4))
    assert of_share("text_alignment", 1.0, (1.0, 1.0), (160, 20), 0.95) == (1.0, 1.0)


def test_independent_images_have_clopper_and_pearsons_interval() -> None:
    """Of 10 in 100: statistics' textbooks have 0.0490 to 0.1762."""
    half = 1.959964 * (0.1 * 0.9 / 100) ** 0.5
    low, high = of_share("recognised", 0.1, (0.1 - half, 0.1 + half), (100, 20), 0.95)
    assert (low, high) == (pytest.approx(0.0490, abs=1e-4), pytest.approx(0.1762, abs=1e-4))


def test_one_image_says_next_to_nothing() -> None:
    assert of_share("recognised", 1.0, (-np.inf, np.inf), (1, 1), 0.95) == (pytest.approx(0.025), 1.0)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.95])
def test_it_covers_a_share_near_its_ends_as_often_as_it_says(share: float) -> None:
    """Prompts differ in their share (beta, intraclass correlation 0.3), as they do."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(600):
        own = rng.beta(share * 7 / 3, (1 - share) * 7 / 3, (1, 20, 1))
        drawn = (rng.random((1, 20, 8)) < own).astype(float)
        value = float(drawn.mean())
        low, high = of_share("recognised", value, crossed_interval(drawn, 0.95), (160, 20), 0.95)
        covered += low <= share <= high
    assert covered / 600 >= 0.94
