"""Text and image alignment (arXiv:2212.04488, section 4, "Metrics"): pure functions of unit vectors, without units."""

from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.floating[Any]]
Scores = npt.NDArray[np.float64]

CLIP_SCORE_WEIGHT = 2.5  # CLIPScore's w (Hessel et al., arXiv:2104.08718)


def text_alignment(images: Vectors, prompts: Vectors) -> Scores:
    """CLIPScore of each image with its own prompt: 2.5 max(cos, 0).

    Args:
        images: (N, D) unit vectors.
        prompts: (N, D) unit vectors of the prompts, V* removed.
    """
    cosine = np.einsum("nd,nd->n", images, prompts, dtype=np.float64)
    return CLIP_SCORE_WEIGHT * np.maximum(cosine, 0)


def image_alignment(images: Vectors, targets: Vectors) -> Scores:
    """Mean cosine of each image with all target pictures: (N,) of (N, D) and (T, D), in [-1, 1].

    In CLIP's image space the paper's image alignment (after Gal et al., arXiv:2208.01618, section 5), in a DINO's that of
    DreamBooth (arXiv:2208.12242, section 4.1).
    """
    return (images.astype(np.float64) @ targets.T.astype(np.float64)).mean(axis=1)


def nearest_similarity(images: Vectors, targets: Vectors) -> Scores:
    """Largest cosine of each image with any target, in [-1, 1]: near 1, a picture was copied and not learnt. This project's."""
    return (images.astype(np.float64) @ targets.T.astype(np.float64)).max(axis=1)
