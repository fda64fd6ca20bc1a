"""Intervals that respect how images hang together: those of one prompt, or of one seed, are not independent."""

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


def crossed_bootstrap(
    scores: Scores, resamples: int, confidence: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile interval of the mean when prompts and seeds are both drawn anew (Owen, 2007, the pigeonhole bootstrap).

    Args:
        scores: (P, S) one score a prompt and seed.
        resamples: how many tables are drawn.
        confidence: such as 0.95.
        rng: the randomness.
    """
    prompts, seeds = scores.shape
    means = np.empty(resamples)
    for number in range(resamples):
        rows = rng.multinomial(prompts, np.full(prompts, 1 / prompts)) / prompts
        columns = rng.multinomial(seeds, np.full(seeds, 1 / seeds)) / seeds
        means[number] = rows @ scores @ columns
    return _percentiles(means, confidence)


def _percentiles(values: Scores, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
