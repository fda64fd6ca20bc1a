"""Which of the candidates become regularization images: an account of every one that does not."""

import pandas as pd

from customdiff_core.errors import RetrievalError


def mark_duplicates(candidates: pd.DataFrame, digests: list[str]) -> pd.DataFrame:
    """Add `dup_group` (equal images share one) and drop all but the best-ranked of each group.

    Args:
        candidates: ordered by rank.
        digests: the images' SHA-256, in the same order.
    """
    groups = pd.factorize(pd.Series(digests))[0]
    repeated = pd.Series(groups).duplicated(keep="first").to_numpy()
    reasons = candidates["drop_reason"].mask(repeated & (candidates["drop_reason"] == ""), "same image as a better hit")
    return candidates.assign(dup_group=groups, drop_reason=reasons)


def mark_dissimilar(candidates: pd.DataFrame, least: float | None) -> pd.DataFrame:
    """Drop the candidates whose caption is too far from the class prompt."""
    if least is None:
        return candidates
    reasons = candidates["drop_reason"].mask(candidates["similarity"] < least, f"similarity below {least}")
    return candidates.assign(drop_reason=reasons)


def take(candidates: pd.DataFrame, count: int, prompt: str) -> pd.DataFrame:
    """Return the best `count` candidates that no rule dropped.

    Raises:
        RetrievalError: if there are fewer, saying where the others went.
    """
    kept = candidates.loc[candidates["drop_reason"] == ""].head(count)
    if len(kept) == count:
        return kept
    reasons = candidates.loc[candidates["drop_reason"] != "", "drop_reason"].value_counts()
    lost = "; ".join(f"{number} {reason}" for reason, number in reasons.items()) or "none dropped"
    raise RetrievalError(
        f"regularization images for {prompt!r}: found {len(kept)} of {len(candidates)} candidates ({lost}), need {count}; "
        "ask for fewer, raise retrieve.candidates, lower retrieve.min_similarity or use a larger index"
    )
