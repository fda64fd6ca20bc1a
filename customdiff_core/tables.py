"""Parquet in and out of an artifact: written alike on every run, images as encoded bytes in a column."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from customdiff_core.artifacts import Artifact, Store

Row = Mapping[str, Any]


def write(path: Path, rows: Sequence[Row] | pd.DataFrame) -> int:
    """Write rows as Parquet; return how many."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame([dict(row) for row in rows])
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, compression="zstd")
    return len(frame)


def records(frame: Any) -> list[dict[str, Any]]:
    """A frame's rows as dicts, by column."""
    return frame.to_dict("records")


def read(store: Store, artifact: Artifact, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read one of an artifact's tables, `name` without its suffix."""
    return pd.read_parquet(store.path(artifact) / f"{name}.parquet", columns=list(columns) if columns else None)
