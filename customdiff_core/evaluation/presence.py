"""Is every creature in the picture? A stated program's answer, with how often it is right on pictures that are known.

The judge, a CLIP, reads captions that name every subset of the categories ("a cat", "a dog", "a cat and a dog", in each
order or, of many, in one and its reverse; and two of one kind). A picture shows all when a caption that names all is nearest.
What was taught seldom has its category's usual colour, so that a caption stands for itself in every colour: the mean of their
embeddings (a prompt ensemble; Radford et al., arXiv:2103.00020, section 3.1.4). How good that is, is measured on the concepts'
true pictures: each alone shows one, all of them side by side show all.
"""

from collections.abc import Sequence
from itertools import combinations, permutations, product
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from customdiff_core import images
from customdiff_core.retrieval.encoder import Vectors

T = TypeVar("T")

COLOURS = ["red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "black", "white", "grey"]
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


def in_every_colour(caption: str) -> list[str]:
    """Return the caption as it is, then with all its things in one colour after the other: "a red cat and a red dog"."""
    things = caption.split(" and ")
    coloured = [[f"a {colour} {thing.removeprefix('a ')}" for thing in things] for colour in COLOURS]
    return [caption, *(" and ".join(one) for one in coloured)]


def ensemble(embeddings: Vectors, captions: int) -> Vectors:
    """The mean direction of each caption's embeddings: unit vectors (C, D) of unit vectors (C x E, D), caption by caption."""
    means = embeddings.reshape(captions, -1, embeddings.shape[-1]).mean(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def combinations_of(groups: Sequence[Sequence[T]]) -> list[list[T]]:
    """Return one of each group beside each other, every two in every company, each time in the groups' order and reversed.

    Of three groups or more, not every combination: as many as of two.
    """
    rounds = max(map(len, groups))
    found: list[list[T]] = []
    for number, shift in product(range(rounds), repeat=2):
        picked = [group[(number + place * shift) % len(group)] for place, group in enumerate(groups)]
        found += [picked, picked[::-1]]
    return found


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
