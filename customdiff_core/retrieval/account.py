"""Where the hits went: the account that the UI shows of a retrieval, finished or not."""

from dataclasses import dataclass

import pandas as pd

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.retrieval.select import NEAR_IMAGE, NOT_NEEDED, SAME_IMAGE, TOO_SMALL, remedy

HERE = frozenset({"ok", "kept"})  # a picture came, or was there from before
ALIVE = HERE | {"not_image", "bomb", "too_large", "opted_out"}  # the host answered with something
ATTEMPTS = ("cand_id", "url", "host", "status", "error", "seconds", "round", "attempt")


@dataclass(frozen=True)
class Account:
    """The tables candidates.parquet and attempts.parquet."""

    candidates: pd.DataFrame
    attempts: pd.DataFrame

    @property
    def last(self) -> pd.DataFrame:
        """The last try of every candidate that was tried."""
        return self.attempts.drop_duplicates("cand_id", keep="last")

    def funnel(self) -> dict[str, int]:
        """How many hits, unique ones that the index has nothing against, tried, alive, valid and kept."""
        last = self.last
        tried = set(last["cand_id"])
        alive = set(last.loc[last["status"].isin(list(ALIVE)), "cand_id"])
        here = set(last.loc[last["status"].isin(list(HERE)), "cand_id"])
        reasons = dict(zip(self.candidates["cand_id"], self.candidates["drop_reason"], strict=True))
        return {
            "hits": len(reasons),
            "unique": sum(one in tried or reason in ("", NOT_NEEDED) for one, reason in reasons.items()),
            "tried": len(tried),
            "alive": len(alive),
            "valid": sum(not str(reasons[one]).startswith((SAME_IMAGE, NEAR_IMAGE, TOO_SMALL)) for one in here),
            "kept": sum(reasons[one] == "" for one in here),
        }

    def hosts(self, most: int) -> list[tuple[str, int, int]]:
        """Survival by host, those with most links first: (host, links tried, pictures)."""
        counts: dict[str, list[int]] = {}
        for host, status in zip(self.last["host"], self.last["status"], strict=True):
            if host:
                count = counts.setdefault(str(host), [0, 0])
                count[0] += 1
                count[1] += status in HERE
        ordered = sorted(counts.items(), key=lambda one: (-one[1][0], one[0]))
        return [(host, tried, pictures) for host, (tried, pictures) in ordered[:most]]

    @property
    def remedy(self) -> str:
        """What to do when there are too few."""
        return remedy(self.candidates)


def account(store: Store, regularization: Artifact) -> Account | None:
    """Read the account of a retrieval; None for images that were drawn, and for none at all."""
    folder = store.path(regularization)
    if not (folder / "candidates.parquet").exists():
        return None
    attempts = tables.read(store, regularization, "attempts")
    return Account(tables.read(store, regularization, "candidates"), attempts.reindex(columns=pd.Index(ATTEMPTS)))
