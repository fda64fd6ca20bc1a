"""The rows behind an index's ids: Parquet parts in the order of their names, read by row group and never whole."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from customdiff_core.errors import RetrievalError

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

# How the data sets call what is needed here: LAION and Re-LAION, COYO, DataComp, img2dataset.
ALIASES = {
    "caption": ("caption", "text", "top_caption", "alt_text"),
    "url": ("url",),
    "image_path": ("image_path",),
    "nsfw": ("nsfw", "punsafe", "nsfw_score"),
    "watermark": ("pwatermark", "watermark", "watermark_score"),
}
SCORES = ("nsfw", "watermark")  # by which images are left out
BATCH = 8192  # rows decoded at a time, so that a huge row group stays a small part of memory


class Metadata:
    """A folder of Parquet parts whose rows, one part after the other, belong to the vectors 0, 1, 2, ...

    Args:
        folder: with *.parquet.

    Raises:
        RetrievalError: if there is none, a column is missing, or the parts' names do not say their order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = sorted(folder.glob("*.parquet"))
        if not self.parts:
            raise RetrievalError(
                f"index {folder.parent}: found no metadata/*.parquet, need the captions; copy the folder again"
            )
        _check_order(self.parts)
        self.columns: dict[str, str] = {}
        self.part_rows: list[int] = []
        self._groups: list[Ids] = []  # where each row group ends in its part
        for part in self.parts:  # one footer at a time: those of two billion rows are gigabytes
            footer = _footer(part)
            columns = columns_of(footer.schema.to_arrow_schema().names)
            self.columns = self.columns or columns
            _check_columns(part, columns, self.columns)
            sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            self._groups.append(np.cumsum(np.asarray(sizes, np.int64)))
            self.part_rows.append(footer.num_rows)
        self._ends: Ids = np.cumsum(np.asarray(self.part_rows, np.int64))

    def __len__(self) -> int:
        return sum(self.part_rows)

    def rows(self, ids: Ids) -> pd.DataFrame:
        """Return the rows with these ids, in their order: caption, url, image_path, nsfw, watermark (empty where unknown)."""
        order = np.argsort(ids, kind="stable")
        sorted_ids = ids[order]
        parts = np.searchsorted(self._ends, sorted_ids, side="right")
        found = [self._read(int(part), sorted_ids[parts == part]) for part in np.unique(parts)]
        if not found:
            return plain(pd.DataFrame(), {})
        # A part may know a score of none of its images: its column is of another type, or of none.
        table: pd.DataFrame = pa.concat_tables(found, promote_options="permissive").to_pandas()
        back = np.empty(len(ids), np.int64)
        back[order] = np.arange(len(ids))
        return plain(table.iloc[back], self.columns)

    def _read(self, part: int, ids: Ids) -> Any:  # a pyarrow.Table, whose types are not known
        """Read some rows of one part: the row groups that hold them, in batches, as one stream."""
        wanted = ids - (int(self._ends[part - 1]) if part else 0)
        ends = self._groups[part]
        groups = np.searchsorted(ends, wanted, side="right")
        chosen = np.unique(groups)
        starts = np.concatenate([[0], ends])[chosen]
        before = np.concatenate([[0], np.cumsum(ends[chosen] - starts)])  # rows of the stream before each chosen group
        place = np.searchsorted(chosen, groups)
        places = wanted - starts[place] + before[place]
        found: list[Any] = []
        start = 0
        with pq.ParquetFile(self.parts[part], memory_map=True) as file:
            names = list(self.columns.values())
            for batch in file.iter_batches(BATCH, row_groups=chosen.tolist(), columns=names):
                here = places[(places >= start) & (places < start + len(batch))]
                if len(here):
                    found.append(pa.Table.from_batches([batch]).take(pa.array(here - start)))
                start += len(batch)
                if start > places[-1]:
                    break
        return pa.concat_tables(found)


def columns_of(names: Sequence[str]) -> dict[str, str]:
    """Find the needed columns by the names that data sets give them: {"caption": "TEXT", ...}."""
    known = {name.lower(): name for name in reversed(names)}
    return {
        column: known[alias]
        for column, aliases in ALIASES.items()
        for alias in [next((one for one in aliases if one in known), None)]
        if alias is not None
    }


def plain(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Bring rows to the project's columns; text that is missing is empty, scores that are missing are None."""
    found: dict[str, list[Any]] = {}
    for column in ALIASES:
        values: list[Any] = table[columns[column]].tolist() if column in columns else [None] * len(table)
        known = [None if pd.isna(value) else value for value in values]
        text = column in ("caption", "url", "image_path")
        found[column] = ["" if value is None else str(value) for value in known] if text else known
    return pd.DataFrame({column: pd.Series(values, dtype=object) for column, values in found.items()})


def _footer(part: Path) -> Any:
    try:
        return pq.read_metadata(part)
    except (pa.ArrowException, OSError) as error:
        raise RetrievalError(f"{part}: found no Parquet file ({error}), need a whole one; copy it again") from error


def _check_columns(part: Path, columns: dict[str, str], first: dict[str, str]) -> None:
    where = f"index {part.parents[1]}: found no column"
    if "caption" not in columns:
        raise RetrievalError(f"{where} caption in metadata/{part.name}, need caption, and image_path or url")
    if not {"url", "image_path"} & set(columns):
        raise RetrievalError(
            f"{where} url or image_path in metadata/{part.name}, need one of them to get the images; build it again"
        )
    if missing := set(first.values()) - set(columns.values()):
        raise RetrievalError(f"{where} {missing.pop()} in metadata/{part.name}, need it as in the other parts")
    if more := sorted(columns[score] for score in SCORES if score in columns and score not in first):
        raise RetrievalError(
            f"index {part.parents[1]}: found a column {more[0]} in metadata/{part.name} and none in the first part, need it in "
            "all: a score that only some parts have would be ignored; add it to them, empty, or leave it out of all"
        )


def _check_order(parts: Sequence[Path]) -> None:
    """Names are compared as text, by clip-retrieval as well: metadata_10 comes before metadata_2."""
    numbers = [[int(one) for one in re.findall(r"\d+", part.stem)] for part in parts]
    for (one, a), (other, b) in pairwise(zip(parts, numbers, strict=True)):
        if a > b:
            raise RetrievalError(
                f"index {one.parents[1]}: found {one.name} before {other.name} in metadata/, need names whose order as text "
                "is that of the vectors; pad their numbers with zeros"
            )
