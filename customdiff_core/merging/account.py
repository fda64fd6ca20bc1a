"""What a merge's tables tell people: what each concept is called now, and what was dropped. Imports no tensor library."""

import pandas as pd

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store


def remarks(merged: Artifact, store: Store) -> list[str]:
    """What is not as somebody would expect it of a merge; mostly nothing. The first merges did not write down what they drop."""
    told = (store.path(merged) / "dropped.parquet").is_file()
    lost = dropped(tables.read(store, merged, "dropped")) if told else []
    return [*renamed(tables.read(store, merged, "rows")), *lost]


def tokens_now(rows: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return each concept's token in the merged model, by the digest of the delta that it came in and its token there."""
    return {(str(one["part"]), str(one["original_token"])): str(one["modifier_token"]) for one in tables.records(rows)}


def renamed(rows: pd.DataFrame) -> list[str]:
    """Say which concepts are not called any more as in their own deltas."""
    columns = ["part", "concept", "original_token", "modifier_token"]
    found = tables.records(rows.loc[rows["original_token"] != rows["modifier_token"], columns].drop_duplicates())
    return [
        f"{one['original_token']} of {one['concept']} is {one['modifier_token']} now: another concept is {one['original_token']}"
        for one in found
    ]


def dropped(lost: pd.DataFrame) -> list[str]:
    """Say whose changes of queries and outputs are not in the merge."""
    counts = lost.groupby("concept").size() if len(lost) else {}
    return [
        f"{count} changes of queries and outputs by {concept} are dropped: not every concept has changes there to average with"
        for concept, count in counts.items()
    ]
