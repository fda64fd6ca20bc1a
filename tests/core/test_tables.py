from pathlib import Path

import pandas as pd
import pytest

from customdiff_core import tables
from customdiff_core.recipes import Recipe

ROWS = [{"name": "a", "image": b"\x89PNG", "row": 1}, {"name": "b", "image": None, "row": 2}]


def test_rows_come_back_as_they_were(store):
    recipe = Recipe(kind="samples", inputs={}, config={}, code="c", versions={})
    made = store.make(recipe, lambda folder: tables.write(folder / "samples.parquet", ROWS))
    assert made.rows == 2
    assert tables.read(store, made, "samples").to_dict("records") == ROWS
    assert list(tables.read(store, made, "samples", ["row", "name"]).columns) == ["row", "name"]


def test_a_frame_is_written_without_its_index_and_equally_each_time(tmp_path: Path):
    frame = pd.DataFrame(ROWS, index=[5, 9])
    assert tables.write(tmp_path / "one.parquet", frame) == 2
    tables.write(tmp_path / "two.parquet", ROWS)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert list(pd.read_parquet(tmp_path / "one.parquet").columns) == ["name", "image", "row"]


def test_a_missing_column_is_an_error(store):
    recipe = Recipe(kind="samples", inputs={}, config={}, code="c", versions={})
    made = store.make(recipe, lambda folder: tables.write(folder / "samples.parquet", ROWS))
    with pytest.raises(Exception, match="none"):
        tables.read(store, made, "samples", ["none"])
