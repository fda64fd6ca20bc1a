import numpy as np
import pandas as pd
import pytest

from customdiff_core.config import RetrieveConfig
from customdiff_core.errors import TooFewImagesError
from customdiff_core.retrieval.candidates import Note
from customdiff_core.retrieval.select import mark_after, mark_before, mark_dissimilar, overfetch, take


def candidates(*similarities: float, **columns: list) -> pd.DataFrame:
    count = len(similarities)
    given = {"item_id": range(100, 100 + count), "cand_id": range(count), "similarity": similarities}
    empty = {"url": [""] * count, "nsfw": [None] * count, "watermark": [None] * count, "drop_reason": [""] * count}
    return pd.DataFrame(given | empty | columns)


def judged(
    table: pd.DataFrame, pictures: dict[int, Note], config: RetrieveConfig = RetrieveConfig(), **failures
) -> list[str]:
    vectors = {item: np.eye(64, dtype=np.float32)[0] for item in table["item_id"]}
    marked = mark_after(mark_before(table, config), pictures, failures.get("failures", {}), config, vectors.__getitem__)
    return marked["drop_reason"].tolist()


def seen(*hashes: int, **same: str) -> dict[int, Note]:
    return {100 + row: Note(same.get(f"n{row}", f"sha {row}"), phash, 64) for row, phash in enumerate(hashes)}


def test_of_equal_images_the_best_ranked_stays():
    pictures = seen(0, 1 << 20, 3 << 30, 7 << 40, n0="a", n2="a", n3="a")
    assert judged(candidates(0.9, 0.8, 0.7, 0.6), pictures) == [
        "",
        "",
        "same image as a better hit",
        "same image as a better hit",
    ]


def test_a_small_image_is_dropped_and_a_larger_copy_of_it_is_not():
    pictures = {100 + row: Note(f"sha {row}", 0, shorter) for row, shorter in enumerate((255, 256, 400))}
    table = candidates(0.9, 0.8, 0.7)
    config = RetrieveConfig(min_side=256, near_hash=4, near_similarity=0.9)
    assert judged(table, pictures, config) == ["smaller than 256 pixels", "", "same picture, nearly, as a better hit"]
    assert judged(table, pictures) == ["", "", ""]


def test_near_duplicates_do_not_chain():
    """Each is 4 bits from the next: the first stays, and the third, which is 8 from it; a chain would drop all but one."""
    hashes = [0, 0xF, 0xFF, 0xFFF, 0xFFFF]
    config = RetrieveConfig(near_hash=4, near_similarity=0.9)
    near = "same picture, nearly, as a better hit"
    assert judged(candidates(*[0.9] * 5), seen(*hashes), config) == ["", near, "", near, ""]


def test_a_near_hash_alone_is_no_near_duplicate():
    """Drawings share hashes: only those whose embeddings are close as well are the same."""
    table = candidates(0.9, 0.8, 0.7)
    vectors = {100: np.array([1.0, 0]), 101: np.array([0.8, 0.6]), 102: np.array([0.99, 0.14])}
    config = RetrieveConfig(near_hash=4, near_similarity=0.95)
    marked = mark_after(mark_before(table, config), seen(0, 1, 3), {}, config, vectors.__getitem__)
    assert marked["drop_reason"].tolist() == ["", "", "same picture, nearly, as a better hit"]
    assert marked["dup_group"].tolist() == [0, 1, 0]


def test_embeddings_are_made_for_near_hashes_only():
    def never(item: int) -> np.ndarray:
        raise AssertionError(f"{item} was embedded")

    config = RetrieveConfig(near_hash=4)
    mark_after(mark_before(candidates(0.9, 0.8), config), seen(0, 0xFFFF), {}, config, never)


def test_an_address_met_before_is_dropped_before_it_is_fetched():
    table = candidates(0.9, 0.8, 0.7, 0.6, url=["http://a", "http://b", "http://a", ""])
    marked = mark_before(table, RetrieveConfig())
    assert marked["drop_reason"].tolist() == ["", "", "same address as a better hit", ""]
    assert marked["dup_group"].tolist() == [0, 1, 0, 3]


def test_a_dropped_hit_takes_no_other_with_it():
    table = candidates(0.9, 0.8, url=["http://a", "http://a"], nsfw=["NSFW", None])
    assert mark_before(table, RetrieveConfig())["drop_reason"].tolist() == ["marked NSFW", ""]


@pytest.mark.parametrize(
    ("value", "reason"),
    [("NSFW", "marked NSFW"), ("nsfw", "marked NSFW"), ("UNSURE", ""), ("UNLIKELY", ""), (0.9, "marked NSFW"), (0.2, ""),
     ("0.9", "marked NSFW"), (None, ""), (float("nan"), "")],
)  # fmt: skip
def test_the_nsfw_column_is_honoured(value: object, reason: str):
    assert mark_before(candidates(0.9, nsfw=[value]), RetrieveConfig())["drop_reason"].tolist() == [reason]


def test_the_watermark_column_is_honoured():
    table = candidates(0.9, 0.8, watermark=[0.81, 0.8])
    assert mark_before(table, RetrieveConfig())["drop_reason"].tolist() == ["watermarked", ""]


def test_forgotten_links_are_dropped_first():
    marked = mark_before(candidates(0.9, 0.8, nsfw=["NSFW", None]), RetrieveConfig(), frozenset({100}))
    assert marked["drop_reason"].tolist() == ["forgotten on request", ""]


def test_a_dead_link_says_how_it_died():
    reasons = judged(candidates(0.9, 0.8, 0.7), seen(0), failures={101: "timeout"})
    assert reasons == ["", "link timeout", ""]


def test_the_limit_itself_is_near_enough():
    marked = mark_dissimilar(candidates(0.9, 0.85, 0.8499), 0.85)
    assert marked["drop_reason"].tolist() == ["", "", "similarity below 0.85"]


def test_the_best_that_have_a_picture_are_taken_and_the_rest_is_not_needed():
    kept, table = take(candidates(0.9, 0.8, 0.7, 0.6), frozenset({100, 102, 103}), 2, "photo of a cat")
    assert kept["cand_id"].tolist() == [0, 2]
    assert table["drop_reason"].tolist() == ["", "not needed", "", "not needed"]


def test_too_few_are_accounted_for_with_what_to_do():
    marked = mark_before(candidates(0.9, 0.8, 0.7, 0.6, 0.5), RetrieveConfig(min_similarity=0.75))
    with pytest.raises(TooFewImagesError) as error:
        take(marked, frozenset(range(100, 105)), 3, "photo of a cat")
    assert str(error.value) == (
        "regularization images for 'photo of a cat': found 2 of 5 candidates (3 similarity below 0.75), need 3; "
        "lower retrieve.min_similarity, or use a larger index"
    )


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [("link dead", "an index whose links are fresher"), ("same image as a better hit", "ask for fewer")],
)
def test_the_remedy_follows_what_took_most(reason: str, remedy: str):
    with pytest.raises(TooFewImagesError, match=remedy):
        take(candidates(0.9, 0.8, drop_reason=[reason] * 2), frozenset(), 1, "x")


@pytest.mark.parametrize(("survival", "factor"), [(0.5, 2.33), (0.75, 1.49), (0.95, 1.1), (1.0, 1.0)])
def test_overfetching_leaves_three_standard_deviations_to_spare(survival: float, factor: float):
    asked = overfetch(200, survival)
    assert asked == pytest.approx(200 * factor, rel=0.02)
    spread = (asked * survival * (1 - survival)) ** 0.5
    assert asked * survival - 3 * spread >= 199.5
