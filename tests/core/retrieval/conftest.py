"""Retrieval talks to loopback, and to nothing else."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches beyond this machine fails instead of waiting."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in LOOPBACK:
            raise AssertionError(f"network: found a connection to {address}, need loopback in a test")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def open_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let links lead to this machine."""
    monkeypatch.setenv("CUSTOMDIFF_ALLOW_LOOPBACK", "true")


def write_index(folder: Path, vectors: np.ndarray, table: pd.DataFrame, parts: int = 1, kind: str = "text") -> Path:
    """Write an exact index folder."""
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors.astype(np.float32))
    faiss.write_index(index, str(folder / f"{kind}.index"))
    (folder / "metadata").mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(table)), parts)):
        table.iloc[rows].to_parquet(folder / "metadata" / f"metadata_{number:04d}.parquet")
    return folder
