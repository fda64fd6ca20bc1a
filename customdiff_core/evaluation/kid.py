"""Kernel Inception Distance (Binkowski et al., arXiv:1801.01401), computed by torch-fidelity on any extractor's features.

KID is the unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, averaged over random subsets; it is
given x 10^3 and always with its extractor's name.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from customdiff_core.errors import EvaluationError
from customdiff_core.evaluation.intervals import crossed_interval

Features = npt.NDArray[np.floating[Any]]
SCALE = 1e3


def kid(generated: Features, real: Features, subset_size: int, subsets: int, seed: int = 0) -> float:
    """KID x 10^3 of features (N, D) and (M, D).

    Raises:
        EvaluationError: if there are fewer images than a subset holds.
    """
    smallest = min(len(generated), len(real))
    if smallest < subset_size:
        raise EvaluationError(
            f"KID: found {smallest} images, need at least the subset size {subset_size}; "
            "raise kid_images or lower kid_subset_size"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-fidelity imports deprecated names
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    result = kid_features_to_metric(
        torch.from_numpy(np.asarray(generated, np.float64)),
        torch.from_numpy(np.asarray(real, np.float64)),
        kid_subset_size=subset_size,
        kid_subsets=subsets,
        rng_seed=seed,
        verbose=False,
    )
    return SCALE * float(result[KEY_METRIC_KID_MEAN])


def kid_interval(value: float, scores: npt.NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """Interval around a value of KID x 10^3, or of a difference of two, by Student's t on its jackknife's pseudo-values.

    Args:
        value: by `kid`, over random subsets; the pseudo-values' own mean is that of all images at once.
        scores: (G,), from `jackknife`, or a difference of two, group by group.
        confidence: such as 0.95.
    """
    low, high = crossed_interval(scores.reshape(1, -1, 1), confidence)
    return low + value - float(scores.mean()), high + value - float(scores.mean())


def jackknife(generated: Features, real: Features, groups: int = 50) -> npt.NDArray[np.float64]:
    """The jackknife's pseudo-values of KID x 10^3, one a group of captions: as if each group had a KID of its own.

    Image i of both sets belongs to caption i, so that leaving a caption out leaves out both. Leaving out, unlike drawing
    with replacement, never compares an image with itself, which would bias the estimate. With G groups, KID of all and KID
    without group g:  G KID - (G - 1) KID_(-g)    (Tukey, 1958). Their mean is the estimate, and their variance over G that of
    the estimate, so that they serve as scores of G prompts.

    Raises:
        EvaluationError: if the sets are no pairs, or too few to leave any out.
    """
    if len(generated) != len(real) or len(real) < 3:
        raise EvaluationError(
            f"KID interval: found {len(generated)} generated and {len(real)} real images, need as many, at least 3; "
            "draw one image for each caption"
        )
    kernel, every = _kernels(generated, real), np.arange(len(generated))
    members = np.array_split(every, min(groups, len(every)))
    left_out = np.array([_mmd2(kernel, np.setdiff1d(every, group)) for group in members])
    return SCALE * (len(members) * _mmd2(kernel, every) - (len(members) - 1) * left_out)


def _kernels(generated: Features, real: Features) -> dict[str, npt.NDArray[np.float64]]:
    return {"gg": _kernel(generated, generated), "rr": _kernel(real, real), "gr": _kernel(generated, real)}


def _kernel(left: Features, right: Features) -> npt.NDArray[np.float64]:
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    return (left @ right.T / left.shape[1] + 1) ** 3


def _mmd2(kernel: dict[str, npt.NDArray[np.float64]], keep: npt.NDArray[np.intp]) -> float:
    """Unbiased squared MMD of the images that are kept."""
    number = len(keep)
    block = {name: matrix[np.ix_(keep, keep)] for name, matrix in kernel.items()}
    within = sum(float(block[name].sum() - np.trace(block[name])) for name in ("gg", "rr")) / (number * (number - 1))
    return within - 2 * float(block["gr"].mean())
