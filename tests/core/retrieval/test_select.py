import pandas as pd
import pytest

from customdiff_core.errors import RetrievalError
from customdiff_core.retrieval.select import mark_dissimilar, mark_duplicates, take


def candidates(*similarities: float) -> pd.DataFrame:
    return pd.DataFrame({"cand_id": range(len(similarities)), "similarity": similarities, "drop_reason": ""})


def test_of_equal_images_the_best_ranked_stays():
    marked = mark_duplicates(candidates(0.9, 0.8, 0.7, 0.6), ["a", "b", "a", "a"])
    assert marked["dup_group"].tolist() == [0, 1, 0, 0]
    assert marked["drop_reason"].tolist() == ["", "", "same image as a better hit", "same image as a better hit"]


def test_an_earlier_reason_is_kept():
    marked = mark_duplicates(mark_dissimilar(candidates(0.9, 0.5), 0.6), ["a", "a"])
    assert marked["drop_reason"].tolist() == ["", "similarity below 0.6"]


def test_the_limit_itself_is_near_enough():
    marked = mark_dissimilar(candidates(0.9, 0.85, 0.8499), 0.85)
    assert marked["drop_reason"].tolist() == ["", "", "similarity below 0.85"]


def test_without_a_limit_none_is_dropped():
    assert mark_dissimilar(candidates(0.1, -0.5), None)["drop_reason"].tolist() == ["", ""]


def test_the_best_that_stay_are_taken():
    marked = mark_duplicates(candidates(0.9, 0.8, 0.7, 0.6), ["a", "a", "b", "c"])
    assert take(marked, 2, "photo of a cat")["cand_id"].tolist() == [0, 2]


def test_too_few_are_accounted_for():
    marked = mark_duplicates(mark_dissimilar(candidates(0.9, 0.8, 0.7, 0.6, 0.5), 0.65), ["a", "a", "b", "c", "d"])
    with pytest.raises(RetrievalError) as error:
        take(marked, 3, "photo of a cat")
    assert str(error.value) == (
        "regularization images for 'photo of a cat': found 2 of 5 candidates (2 similarity below 0.65; "
        "1 same image as a better hit), need 3; ask for fewer, raise retrieve.candidates, lower retrieve.min_similarity "
        "or use a larger index"
    )


def test_too_few_candidates_with_none_dropped():
    with pytest.raises(RetrievalError, match=r"found 2 of 2 candidates \(none dropped\), need 3"):
        take(candidates(0.9, 0.8), 3, "x")
