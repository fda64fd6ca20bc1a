"""Intervals that respect how images hang together: those of one training, one prompt or one seed are not independent.

A table of scores is crossed: every prompt was drawn with every seed by every training, so that trainings, prompts and seeds
each bring a variation of their own (random effects). The interval adds what each brings to the mean,

    Var(mean) = s_T²/T + s_P²/P + s_S²/S - 2 s_e²/(T P S)      (s²: variances of the marginal means; s_e²: of the residuals)

and takes Student's t with Satterthwaite's degrees of freedom. A percentile bootstrap of the same clusters gives 77 % where
95 % are promised when three trainings differ: three of anything cannot be resampled into what they do not show.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import betaincinv, ndtri, stdtrit

Scores = npt.NDArray[np.float64]
BY_COLOUR = "recognised_by_colour"
SHARES = frozenset({"recognised", BY_COLOUR, "all_present"})  # metrics that are 0 or 1 an image


def of_share(
    metric: str,
    value: float,
    ends: tuple[float, float],
    size: tuple[int, int],
    confidence: float,
    *,
    difference: bool = False,
) -> tuple[float, float]:
    """The interval of a share of images, of which normal theory knows neither its ends nor how skewed it is near them.

    Clopper's and Pearson's (1934) interval for as many independent images as would vary as these do, n = p (1 - p) (z / h)²
    of a half-width h (Korn and Graubard, 1998). Where all agree, that is one a prompt. A difference of two shares keeps its
    ends within -1 and 1, and is widened where all agree.

    Args:
        metric: of others than shares the ends are returned as they are.
        value: the share p, or the difference.
        ends: its interval by `crossed_interval` or `pooled_interval`.
        size: how many images, and how many prompts.
        confidence: that of the ends.
        difference: of two shares, paired.
    """
    if metric not in SHARES:
        return ends
    (low, high), (images, prompts), alpha = ends, size, 1 - confidence
    if difference:
        unseen = 1 - (alpha / 2) ** (1 / prompts) if low == high else 0.0
        return max(low - unseen, -1.0), min(high + unseen, 1.0)
    if value in (0.0, 1.0):
        count = float(prompts)
    elif low == high:
        count = float(images)
    else:
        count = value * (1 - value) * (2 * float(ndtri(1 - alpha / 2)) / (high - low)) ** 2
    count = min(max(count, 1.0), images)
    hits = count * value
    return (
        float(betaincinv(hits, count - hits + 1, alpha / 2)) if hits > 0 else 0.0,
        float(betaincinv(hits + 1, count - hits, 1 - alpha / 2)) if hits < count else 1.0,
    )


def grid_of(scores: pd.DataFrame, column: str = "value") -> Scores:
    """One column of a table with a row a prompt_id and seed, as (prompts, seeds)."""
    return scores.pivot(index="prompt_id", columns="seed", values=column).to_numpy(np.float64)


def crossed_interval(scores: Scores, confidence: float) -> tuple[float, float]:
    """Interval of the mean over trainings, prompts and seeds like these (Satterthwaite, 1946; Searle, 1971, chapter 9).

    Args:
        scores: (T, P, S), one score a training, prompt and sampling seed. With T = 1 the interval is that of this one
            training: how others would differ, it cannot know.
        confidence: such as 0.95.

    Returns:
        Its two ends; minus and plus infinity where there is but one score.
    """
    return pooled_interval(scores[None], confidence)


def pooled_interval(scores: Scores, confidence: float) -> tuple[float, float]:
    """Interval of the mean of these concepts, over trainings, prompts and seeds like these.

    Each concept's trainings are its own, and what they bring is pooled: C (T - 1) degrees of freedom. Prompts and seeds are
    crossed with all, since the noise of a prompt's number and seed is the same for every concept.

    Args:
        scores: (C, T, P, S), one score a concept, training of it, prompt and sampling seed.
        confidence: such as 0.95.

    Returns:
        Its two ends; minus and plus infinity where there is but one score of each concept.
    """
    mean, (concepts, *levels) = float(scores.mean()), scores.shape
    own = [scores.mean(axis=tuple(other for other in (1, 2, 3) if other != axis), keepdims=True) for axis in (1, 2, 3)]
    parts: list[tuple[float, int]] = []  # what each axis brings to the mean, and its degrees of freedom
    if levels[0] > 1:
        spread = float(own[0].var(axis=1, ddof=1).mean())
        parts.append((spread / scores.shape[1] / concepts, concepts * (levels[0] - 1)))
    for axis in (2, 3):
        if scores.shape[axis] > 1:
            marginal = own[axis - 1].mean(axis=0).ravel()
            parts.append((float(marginal.var(ddof=1)) / marginal.size, marginal.size - 1))
    if not parts:
        return -np.inf, np.inf
    # Each marginal variance holds the noise once; the mean has it but once in all. Never less than the largest part alone.
    variance = max(
        sum(part for part, _ in parts) - (len(parts) - 1) * _noise(scores, own), *(part for part, _ in parts)
    )
    if variance == 0:
        return mean, mean
    degrees = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    half = float(stdtrit(degrees, 0.5 + confidence / 2)) * variance**0.5
    return mean - half, mean + half


def _noise(scores: Scores, own: list[Scores]) -> float:
    """What the scores' residuals within each concept bring to the mean; 0 where nothing is left over."""
    levels = scores.shape[1:]
    freedom = scores.size - scores.shape[0] * (sum(level - 1 for level in levels) + 1)
    residual = scores - sum(own) + 2 * scores.mean(axis=(1, 2, 3), keepdims=True)
    return float(np.square(residual).sum()) / freedom / scores.size if freedom else 0.0
