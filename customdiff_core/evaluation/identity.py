"""Is it this one? Whether a generated picture's nearest true picture is of the concept, and not of its look-alikes.

True pictures are the held-out ones, and look-alikes the same views in other colours: neither has an advantage in pose or place.

Two witnesses that share nothing: the judge's embedding, which sees shapes and colours, and the colours of the foreground
alone, which know no shape and were never trained. Both measures are this project's own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from customdiff_core import images
from customdiff_core.concepts import Concept
from customdiff_core.evaluation.intervals import BY_COLOUR
from customdiff_core.evaluation.judge import Judge

Vectors = npt.NDArray[np.floating[Any]]
Scores = npt.NDArray[np.float64]

RATES = ("recognised", BY_COLOUR)  # by the judge and by the colours; 0 or 1 an image

SIDE = 64  # pixels to which pictures are brought before their colours are counted
RING = 4  # pixels of border that say what the background is
LEVELS = 8  # of each channel, when the background's colours are looked up
BACKGROUND_SHARE = 0.02  # of the border; a colour as frequent there is background
HUES, GREYS = 18, 3
OUTLINE = 60  # of 255; darker pixels are outlines
THINGS, SMALLEST = 4, 0.25  # things of a picture that are looked at, and what a small one has of the largest's pixels
COLOURLESS = 0.18  # chroma below which a pixel is grey


def identity(concept: Concept, drawn: Sequence[bytes], judge: Judge) -> dict[str, Scores]:
    """Whether each of N encoded images is taken for the concept and not for one of its look-alikes: (N,) for each of RATES.

    Args:
        concept: with pictures in others/.
        drawn: generated images.
        judge: the evaluation's encoders.
    """
    own, others = concept.true_pictures(), [concept.read(picture, "others") for picture in concept.others]

    def palettes(data: Sequence[bytes]) -> Vectors:
        return np.stack([colours(images.decode(one, "picture")) for one in data])

    parts = np.stack([colours_of_things(images.decode(one, "picture")) for one in drawn])
    found = (
        recognised(judge.images(drawn), judge.images(own), judge.images(others)),
        recognised(parts, palettes(own), palettes(others)),
    )
    return dict(zip(RATES, found, strict=True))


def recognised(drawn: Vectors, own: Vectors, others: Vectors) -> Scores:
    """1 where the nearest of all pictures is one of the concept's own, else 0.

    Args:
        drawn: (N, D) unit vectors, or (N, K, D) of K parts of each picture, of which one is enough: a red apple beside the
            concept is like the red look-alike, and says nothing of the concept.
        own: (T, D) the concept's true pictures.
        others: (M, D) look-alikes.
    """
    drawn, own, others = (one.astype(np.float64) for one in (drawn, own, others))
    nearest, other = ((drawn @ true.T).max(axis=-1) for true in (own, others))
    return (nearest > other).reshape(len(drawn), -1).any(axis=1).astype(np.float64)


def colours(picture: Image.Image) -> Vectors:
    """The foreground's colours: square roots of the shares of HUES hues and GREYS greys, a unit vector.

    Products of two are Bhattacharyya coefficients. Pixels in the colours of the border, and outlines, do not count; a
    picture without foreground gives zeros.
    """
    pixels = _pixels(picture)
    return _palette(pixels[_foreground(pixels) & _painted(pixels)])


def colours_of_things(picture: Image.Image) -> Vectors:
    """The colours of the whole foreground and of each thing that stands apart in it: (1 + THINGS, D), zeros where there are fewer.

    What stands beside a concept, a red apple, does not count against it then. Things are connected, their outlines
    included; the smaller ones have a share of the largest's paint of at least SMALLEST.
    """
    pixels = _pixels(picture)
    seen, paint = _foreground(pixels), _painted(pixels)
    found, count = ndimage.label(seen, structure=np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    sizes = np.bincount(found[paint & seen], minlength=count + 1)[1:]
    large = [thing for thing in np.argsort(-sizes, kind="stable")[:THINGS] if sizes[thing] >= SMALLEST * sizes.max()]
    made = np.zeros((1 + THINGS, HUES + GREYS), np.float32)
    for row, mask in enumerate([seen, *(found == thing + 1 for thing in large)]):
        made[row] = _palette(pixels[mask & paint])
    return made


def _pixels(picture: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))


def _palette(pixels: npt.NDArray[np.uint8]) -> Vectors:
    """The unit vector of (n, 3) pixels' colours; zeros of none."""
    shown = pixels.astype(np.float64) / 255
    counts = np.zeros(HUES + GREYS)
    if len(shown):
        high, low = shown.max(axis=1), shown.min(axis=1)
        chroma = high - low
        grey = chroma < COLOURLESS
        level = (high[grey] * GREYS - 0.5).clip(0, GREYS - 1)
        _spread(counts[HUES:], level, np.ones(len(level)), (np.floor(level) + 1).clip(0, GREYS - 1))
        # Weak colours count little: an antialiased edge is no paint.
        hue = _hue(shown[~grey]) * HUES
        _spread(counts[:HUES], hue, chroma[~grey], (np.floor(hue) + 1) % HUES)
        counts = np.sqrt(counts / counts.sum())
    return counts.astype(np.float32)


def _spread(counts: Scores, place: Scores, weight: Scores, after: npt.NDArray[Any]) -> None:
    """Share each weight between the two bins that its place lies between: no colour is near an edge."""
    first = np.floor(place).astype(int) % len(counts)
    share = place - np.floor(place)
    np.add.at(counts, first, weight * (1 - share))
    np.add.at(counts, after.astype(int), weight * share)


def _painted(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """(h, w): no outline, which every drawing has."""
    return pixels.max(axis=-1) > OUTLINE


def _foreground(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """(h, w): not of a colour that the border shows."""
    bins = (pixels.astype(int) * LEVELS // 256) @ np.array([LEVELS * LEVELS, LEVELS, 1])
    border = np.ones(bins.shape, bool)
    border[RING:-RING, RING:-RING] = False
    shares = np.bincount(bins[border], minlength=LEVELS**3) / border.sum()
    return shares[bins] < BACKGROUND_SHARE


def _hue(shown: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Hue of (N, 3) colours, 0..1."""
    red, green, blue = shown.T
    high, chroma = shown.max(axis=1), shown.max(axis=1) - shown.min(axis=1)
    sector = np.where(
        high == red,
        (green - blue) / chroma % 6,
        np.where(high == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    return sector / 6 % 1
