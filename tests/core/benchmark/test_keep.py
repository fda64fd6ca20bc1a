"""Old nights: their scores stay, their trainings and images go."""

from datetime import timedelta

import pandas as pd

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark.keep import tidy
from customdiff_core.recipes import Recipe

from .conftest import NIGHT, PROTOCOL, Night, read

KEEPING = PROTOCOL.model_copy(update={"keep_nights": 1})


def test_the_trainings_of_a_night_long_past_go_and_what_a_newer_one_uses_stays(store: Store, night: Night) -> None:
    first = night()
    old = [_with_training(store, cell, "old") for cell in read(store, first, "benchmark")["cell"]]
    assert tidy(first, KEEPING, store=store) == []
    second = night(NIGHT + timedelta(days=1))
    cells = read(store, second, "benchmark")
    new = [_with_training(store, cell, "new") for cell in cells.loc[cells["night"] != NIGHT.isoformat(), "cell"]]
    assert tidy(second, PROTOCOL, store=store) == []  # keeps three
    gone = tidy(second, KEEPING, store=store)
    assert set(gone) == set(old) - set(new)
    assert gone
    assert not any(store.path(one).exists() for one in gone)
    assert all(store.path(one).is_dir() for one in new)
    assert tables.read(store, second, "table").equals(read(store, night(NIGHT + timedelta(days=1)), "table"))
    assert tidy(second, KEEPING, store=store) == []


def _with_training(store: Store, cell: str, night: str) -> Artifact:
    """Give a handmade cell a training; the base model's cells, which are the same every night, have one that is the same."""
    path = store.root / "cell" / cell / "sources.parquet"
    sources = pd.read_parquet(path)
    if "delta" in set(sources["name"]):  # of an earlier night
        return Artifact.model_validate(tables.records(sources[sources["name"] == "delta"].drop(columns="name"))[0])
    recipe = Recipe(kind="delta", inputs={}, config={"cell": cell}, code=night, versions={})
    made = store.make(recipe, lambda folder: tables.write(folder / "weights.parquet", [{"a": 1}]))
    tables.write(path, pd.concat([sources, pd.DataFrame([{"name": "delta", **made.model_dump()}])]))
    return made
