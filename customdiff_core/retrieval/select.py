"""Which of the candidates become regularization images: an account of every one that does not.

A candidate's `drop_reason` is the first rule that it broke; it is empty for the images that are taken, and for no other.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from customdiff_core.config import RetrieveConfig
from customdiff_core.errors import TooFewImagesError

UNWANTED = frozenset({"NSFW", "UNSAFE"})  # LAION's words; its UNSURE stays
SAME_URL, SAME_IMAGE, NEAR_IMAGE = (f"same {what} as a better hit" for what in ("address", "image", "picture, nearly,"))
FORGOTTEN = "forgotten on request"
NOT_FETCHED = "link "
TOO_SMALL = "smaller than "
NOT_NEEDED = "not needed"


class Seen(Protocol):
    """What is known of a fetched picture."""

    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def phash(self) -> int: ...  # noqa: D102
    @property
    def shorter(self) -> int: ...  # noqa: D102


def mark_before(
    candidates: pd.DataFrame, config: RetrieveConfig, forgotten: frozenset[int] = frozenset()
) -> pd.DataFrame:
    """Drop by what the index says: forgotten, NSFW, watermarked, too far from the class prompt, an address met before.

    Args:
        candidates: by rank, with similarity, url, nsfw and watermark.
        config: the limits.
        forgotten: item ids whose removal somebody asked for.
    """
    table = candidates.assign(drop_reason="", dup_group=range(len(candidates)))
    table = _drop(table, table["item_id"].isin(list(forgotten)), FORGOTTEN)
    table = _drop(table, [_unwanted(value, config.max_nsfw) for value in table["nsfw"]], "marked NSFW")
    table = _drop(table, [_unwanted(value, config.max_watermark) for value in table["watermark"]], "watermarked")
    table = mark_dissimilar(table, config.min_similarity)
    kept = table["drop_reason"] == ""
    repeated = kept & (table["url"] != "") & table["url"].where(kept, None).duplicated(keep="first")
    first = table.loc[kept].groupby("url")["dup_group"].transform("first")
    table.loc[repeated, "dup_group"] = first[repeated]
    return _drop(table, repeated, SAME_URL)


def mark_dissimilar(candidates: pd.DataFrame, least: float | None) -> pd.DataFrame:
    """Drop the candidates whose caption is too far from the class prompt."""
    if least is None:
        return candidates
    return _drop(candidates, candidates["similarity"] < least, f"similarity below {least}")


def mark_after(
    candidates: pd.DataFrame,
    pictures: Mapping[int, Seen],
    failures: Mapping[int, str],
    config: RetrieveConfig,
    embed: Callable[[int], npt.NDArray[np.float32]],
) -> pd.DataFrame:
    """Drop by what was fetched: dead links, small images, equal ones, near-duplicates; never against one that was itself dropped.

    A near-duplicate is near to an image that is *kept*, in the perceptual hash and in the embedding. So duplicates do not
    chain: of a series in which each is like the next, the first stays, and so does whatever is unlike it.

    Args:
        candidates: from `mark_before`.
        pictures: by item id, those that were fetched.
        failures: by item id, why not.
        config: the limits.
        embed: an item's image embedding, asked for only where hashes are close.
    """
    table = candidates.copy()
    reasons, groups = table["drop_reason"].tolist(), table["dup_group"].tolist()
    hashes: dict[str, int] = {}
    kept: list[tuple[int, int]] = []  # (item id, row)
    for row, item in enumerate(int(one) for one in table["item_id"]):
        if reasons[row]:
            continue
        if item in failures:
            reasons[row] = NOT_FETCHED + failures[item]
        elif item in pictures:
            seen = pictures[item]
            if config.min_side is not None and seen.shorter < config.min_side:
                reasons[row] = f"{TOO_SMALL}{config.min_side} pixels"
                continue
            if seen.sha256 in hashes:
                reasons[row], groups[row] = SAME_IMAGE, groups[hashes[seen.sha256]]
                continue
            like = _near(item, kept, pictures, config, embed)
            if like is not None:
                reasons[row], groups[row] = NEAR_IMAGE, groups[like]
                continue
            hashes[seen.sha256] = row
            kept.append((item, row))
    return table.assign(drop_reason=reasons, dup_group=groups)


def take(
    candidates: pd.DataFrame, usable: frozenset[int], count: int, prompt: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the best `count` candidates that no rule dropped, and the table in which the rest is "not needed".

    Args:
        candidates: from `mark_after`.
        usable: item ids of which there is a picture.
        count: how many.
        prompt: for the message.

    Raises:
        TooFewImagesError: if there are fewer, saying where the others went.
    """
    open_ = candidates["drop_reason"] == ""
    kept = candidates.loc[open_ & candidates["item_id"].isin(list(usable))].head(count)
    if len(kept) < count:
        raise TooFewImagesError(
            f"regularization images for {prompt!r}: found {len(kept)} of {len(candidates)} candidates ({losses(candidates)}), "
            f"need {count}; {remedy(candidates)}"
        )
    return kept, _drop(candidates, open_ & ~candidates.index.isin(kept.index), NOT_NEEDED)


def losses(candidates: pd.DataFrame) -> str:
    """Say how many were dropped, and why."""
    reasons = candidates.loc[candidates["drop_reason"] != "", "drop_reason"].value_counts()
    return "; ".join(f"{number} {reason}" for reason, number in reasons.items()) or "none dropped"


def remedy(candidates: pd.DataFrame) -> str:
    """One line that says what to do when there are too few, by what took most of them."""
    reasons = candidates["drop_reason"]
    if reasons.str.startswith("similarity").sum() > len(candidates) / 2:
        return "lower retrieve.min_similarity, or use a larger index"
    if reasons.str.startswith(NOT_FETCHED).sum() > len(candidates) / 2:
        return "raise retrieve.deepest, try again later, or use an index whose links are fresher"
    if reasons.str.startswith(TOO_SMALL).sum() > len(candidates) / 2:
        return "lower retrieve.min_side, or use an index of larger images"
    return "ask for fewer (retrieve.count), raise retrieve.deepest, or use a larger index"


def _near(
    item: int,
    kept: list[tuple[int, int]],
    pictures: Mapping[int, Seen],
    config: RetrieveConfig,
    embed: Callable[[int], npt.NDArray[np.float32]],
) -> int | None:
    if config.near_hash is None:
        return None
    own = pictures[item].phash
    for other, row in kept:
        close = (own ^ pictures[other].phash).bit_count() <= config.near_hash
        if close and float(embed(item) @ embed(other)) >= config.near_similarity:
            return row
    return None


def _drop(table: pd.DataFrame, rows: Any, reason: str) -> pd.DataFrame:
    fresh = np.asarray(rows, bool) & (table["drop_reason"] == "").to_numpy()
    return table.assign(drop_reason=table["drop_reason"].mask(fresh, reason))


def _unwanted(value: Any, limit: float) -> bool:
    """LAION's word, or a score above the limit; what is not known is not unwanted."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    try:
        return float(value) > limit
    except (TypeError, ValueError):
        return str(value).strip().upper() in UNWANTED


def overfetch(missing: int, survival: float) -> int:
    """How many links to try so that `missing` survive with three standard deviations to spare.

    n p - 3 sqrt(n p (1 - p)) >= missing, solved for n (binomial with survival p).
    """
    spread = 3 * math.sqrt(1 - survival)
    root = (spread + math.sqrt(spread**2 + 4 * missing)) / 2
    return math.ceil(root**2 / survival)
