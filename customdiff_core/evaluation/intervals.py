"""Intervals that respect how images hang together: those of one training, one prompt or one seed are not independent.

A table of scores is crossed: every prompt was drawn with every seed by every training, so that trainings, prompts and seeds
each bring a variation of their own (random effects). The interval adds what each brings to the mean,

    Var(mean) = s_T²/T + s_P²/P + s_S²/S - 2 s_e²/(T P S)      (s²: variances of the marginal means; s_e²: of the residuals)

and takes Student's t with Satterthwaite's degrees of freedom. A percentile bootstrap of the same clusters gives 77 % where
95 % are promised when three trainings differ: three of anything cannot be resampled into what they do not show.
"""

import numpy as np
import numpy.typing as npt
from scipy import stats

Scores = npt.NDArray[np.float64]


def crossed_interval(scores: Scores, confidence: float) -> tuple[float, float]:
    """Interval of the mean over trainings, prompts and seeds like these (Satterthwaite, 1946; Searle, 1971, chapter 9).

    Args:
        scores: (T, P, S), one score a training, prompt and sampling seed. With T = 1 the interval is that of this one
            training: how others would differ, it cannot know.
        confidence: such as 0.95.

    Returns:
        Its two ends; minus and plus infinity where there is but one score.
    """
    mean, axes = float(scores.mean()), [axis for axis in range(scores.ndim) if scores.shape[axis] > 1]
    if not axes:
        return -np.inf, np.inf
    marginal = [_marginal(scores, axis) for axis in axes]
    parts = [float(one.var(ddof=1)) / one.size for one in marginal]
    freedom = scores.size - sum(one.size - 1 for one in marginal) - 1
    residual = scores - mean
    for axis, one in zip(axes, marginal, strict=True):
        shape = [1] * scores.ndim
        shape[axis] = one.size
        residual = residual - (one - mean).reshape(shape)
    noise = float(np.square(residual).sum()) / freedom / scores.size if freedom else 0.0
    # Each marginal variance holds the noise once; the mean has it but once in all. Never less than the largest part alone.
    variance = max(sum(parts) - (len(axes) - 1) * noise, *parts)
    if variance == 0:
        return mean, mean
    degrees = variance**2 / sum(part**2 / (one.size - 1) for part, one in zip(parts, marginal, strict=True))
    half = float(stats.t.ppf(0.5 + confidence / 2, degrees)) * variance**0.5
    return mean - half, mean + half


def _marginal(scores: Scores, axis: int) -> Scores:
    """The mean of each level of one axis."""
    return scores.mean(axis=tuple(other for other in range(scores.ndim) if other != axis))
