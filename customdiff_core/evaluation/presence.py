"""Is every creature in the picture? A stated program's answer, with how often it is right on pictures that are known.

The judge, a CLIP, reads captions that name every subset of the categories ("a cat", "a dog", "a cat and a dog", in each
order or, of many, in one and its reverse; and two of one kind). A picture shows all when a caption that names all is nearest.
How good that is, is measured on the concepts' own pictures: each alone shows one, two put side by side show both.
"""

from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt
from PIL import Image

from customdiff_core import images
from customdiff_core.retrieval.encoder import Vectors

EVERY_ORDER = 5  # categories, at most: of five there are 325 captions, of eight there would be 109,600


def captions_of(categories: Sequence[str]) -> list[tuple[str, bool]]:
    """Return every caption that the judge chooses from, with whether it names all."""
    found: list[tuple[str, bool]] = []
    for count in range(1, len(categories) + 1):
        for subset in combinations(categories, count):
            many = len(categories) > EVERY_ORDER
            orders = dict.fromkeys((subset, subset[::-1])) if many else permutations(subset)
            found += [(_caption(order), count == len(categories)) for order in orders]
    return found + [(_caption((one, one)), False) for one in categories]


def shows_all(pictures: Vectors, captions: Vectors, names_all: Sequence[bool]) -> npt.NDArray[np.bool_]:
    """Whether the nearest caption of each picture names all: (N,) of unit vectors (N, D) and (C, D)."""
    return np.asarray(names_all)[(pictures @ captions.T).argmax(axis=1)]


def side_by_side(pictures: Sequence[Image.Image], side: int) -> bytes:
    """Put pictures beside each other on a square canvas, as a picture that is known to show all."""
    width = side // len(pictures)
    canvas = Image.new("RGB", (side, side), pictures[0].getpixel((0, 0)))
    for number, picture in enumerate(pictures):
        small = images.center_crop(picture).resize((width, width), Image.Resampling.LANCZOS)
        canvas.paste(small, (number * width, (side - width) // 2))
    return images.encode(canvas)


def _caption(categories: Sequence[str]) -> str:
    return " and ".join(f"a {one}" for one in categories)
