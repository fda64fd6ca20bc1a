import numpy as np
import pytest
from PIL import Image

from customdiff_core import images
from customdiff_core.evaluation.presence import (
    COLOURS,
    captions_of,
    combinations_of,
    ensemble,
    in_every_colour,
    shows_all,
    side_by_side,
)


def test_captions_name_every_subset_in_every_order_and_two_of_a_kind():
    assert captions_of(["cat", "dog"]) == [
        ("a cat", False),
        ("a dog", False),
        ("a cat and a dog", True),
        ("a dog and a cat", True),
        ("a cat and a cat", False),
        ("a dog and a dog", False),
    ]
    three = captions_of(["cat", "dog", "house"])
    assert sum(names_all for _, names_all in three) == 6
    assert ("a dog and a house", False) in three


def test_of_many_not_every_order_is_read():
    """A merge of ten concepts is evaluated in seconds, not in ten million captions."""
    many = captions_of([f"thing {number}" for number in range(10)])
    assert len(many) == 2 * (2**10 - 1 - 10) + 10 + 10
    assert sum(names_all for _, names_all in many) == 2


def test_a_caption_stands_for_itself_in_every_colour():
    found = in_every_colour("a cat and a hot dog")
    assert found[:2] == ["a cat and a hot dog", "a red cat and a red hot dog"]
    assert len(found) == 1 + len(COLOURS)


def test_an_ensemble_is_the_mean_direction_of_each_captions_own():
    turned = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    np.testing.assert_allclose(ensemble(turned, 2), [[0.5**0.5, 0.5**0.5], [0, 1]], atol=1e-6)


def test_every_two_pictures_stand_beside_each_other_in_both_orders():
    pairs = combinations_of(["abc", "xy"])
    assert {"".join(one) for one in pairs} == {f"{a}{x}" for a in "abc" for x in "xy"} | {
        f"{x}{a}" for a in "abc" for x in "xy"
    }
    three = combinations_of(["abc", "xy", "pq"])
    assert len(three) == len(pairs) == 18
    assert {one[0] for one in three} == set("abcpq")


def test_a_picture_shows_all_when_a_caption_of_all_is_nearest():
    captions = np.eye(3, dtype=np.float32)
    pictures = np.array([[0.9, 0.1, 0], [0, 0.2, 0.9], [0.1, 0.8, 0.5]], np.float32)
    assert shows_all(pictures, captions, [False, False, True]).tolist() == [False, True, False]


def test_pictures_side_by_side_are_all_there():
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    made = np.asarray(images.open_trusted(side_by_side(pictures, 64)))
    assert made.shape == (64, 64, 3)
    assert made[32, 16].tolist() == [255, 0, 0]
    assert made[32, 48].tolist() == [0, 0, 255]


@pytest.mark.parametrize("count", [2, 3])
def test_many_are_as_wide_as_there_is_room(count: int):
    pictures = [Image.new("RGB", (20, 20), "white")] * count
    assert images.open_trusted(side_by_side(pictures, 64)).size == (64, 64)
