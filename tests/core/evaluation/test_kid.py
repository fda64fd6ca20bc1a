import numpy as np
import pytest

from customdiff_core.errors import EvaluationError
from customdiff_core.evaluation.kid import jackknife, kid, kid_interval


def features(count: int, shift: float = 0.0, seed: int = 0, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (count, width))


def mmd(one: np.ndarray, other: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, x 10^3, in loops: written apart from the core."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((np.dot(x, y) / len(x) + 1) ** 3)

    n, m = len(one), len(other)
    within = sum(kernel(one[i], one[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(kernel(other[i], other[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return 1e3 * (within - 2 * sum(kernel(x, y) for x in one for y in other) / (n * m))


def test_one_subset_of_all_images_is_the_unbiased_mmd_exactly():
    one, other = features(40, 0.2, 1), features(40, 0, 2)
    assert kid(one, other, subset_size=40, subsets=1) == pytest.approx(mmd(one, other), abs=1e-9)


def test_subsets_average_to_it():
    one, other = features(120, 0.3, 1), features(120, 0, 2)
    every = mmd(one, other)
    single = [kid(one, other, 60, 1, seed) for seed in range(12)]
    many = kid(one, other, 60, 100)
    assert many == pytest.approx(every, abs=4 * np.std(single) / np.sqrt(100) + 0.02 * every)
    assert np.std(single) > 0


def test_the_same_distribution_is_near_zero_and_noise_is_not():
    real = features(200, 0, 1)
    same, shifted, wider = features(200, 0, 2), features(200, 0.5, 3), 2 * features(200, 0, 4)
    near = abs(kid(same, real, 100, 50))
    assert near < 20
    assert kid(shifted, real, 100, 50) > 10 * near
    assert kid(wider, real, 100, 50) > 10 * near


def test_it_repeats_and_takes_float32():
    one, other = features(60, 0.3, 1), features(60, 0, 2)
    assert kid(one, other, 30, 10) == kid(one, other, 30, 10)
    assert kid(one, other, 30, 10) != kid(one, other, 30, 10, seed=1)
    assert kid(one.astype(np.float32), other.astype(np.float32), 30, 10) == pytest.approx(
        kid(one, other, 30, 10), rel=1e-4
    )


@pytest.mark.parametrize(("generated", "real"), [(9, 50), (50, 9)])
def test_fewer_images_than_a_subset_are_refused(generated: int, real: int):
    with pytest.raises(EvaluationError) as error:
        kid(features(generated), features(real), subset_size=10, subsets=5)
    assert str(error.value) == (
        "KID: found 9 images, need at least the subset size 10; raise kid_images or lower kid_subset_size"
    )


def test_the_interval_lies_around_the_value_beside_it():
    one, other = features(60, 0.3, 1), features(60, 0, 2)
    scores = jackknife(one, other)
    low, high = kid_interval(7.0, scores)
    assert (low + high) / 2 == pytest.approx(7.0)
    assert low < high
    wider = kid_interval(7.0, scores, confidence=0.999)
    assert wider[0] < low < high < wider[1]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
        return features(60, 0.4, 2 * seed, 6), features(60, 0, 2 * seed + 1, 6)

    def interval(seed: int) -> tuple[float, float]:
        return kid_interval(kid(*pair(seed), 60, 1), jackknife(*pair(seed), 20))

    truth = np.mean([kid(*pair(seed), 60, 1) for seed in range(1000, 2500)])
    covered = [low <= truth <= high for low, high in map(interval, range(200))]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_few_groups_have_students_interval():
    scores = np.array([1.0, 2.0, 4.0])
    low, high = kid_interval(0.0, scores)
    assert (high - low) / 2 == pytest.approx(4.303 * scores.std(ddof=1) / 3**0.5, rel=1e-3)  # t of 2 degrees of freedom


def test_a_paired_difference_is_seen_where_two_intervals_overlap():
    """Both models draw the same captions: what a caption is like is in neither's difference."""
    shared, real = features(60, 0, 1), features(60, 0, 2)
    one, other = shared + features(60, 0, 3) / 20 + 0.4, shared + 0.5
    values = [kid(drawn, real, 60, 1) for drawn in (one, other)]
    scores = [jackknife(drawn, real) for drawn in (one, other)]
    (_, high), (low, _) = (kid_interval(value, score) for value, score in zip(values, scores, strict=True))
    assert low < high
    assert kid_interval(values[1] - values[0], scores[1] - scores[0])[0] > 0


def test_the_interval_needs_pairs():
    with pytest.raises(
        EvaluationError, match="KID interval: found 12 generated and 10 real images, need as many, at least 3"
    ):
        jackknife(features(12), features(10))
    with pytest.raises(EvaluationError, match="need as many, at least 3"):
        jackknife(features(2), features(2))
