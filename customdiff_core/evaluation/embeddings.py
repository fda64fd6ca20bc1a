"""What encoders have seen before: every picture and text is embedded once, in whatever set it comes again.

    <store>/checkpoints/embeddings/<encoder's key>/vectors.sqlite     digest -> float32 vector, with its checksum

A set's new vectors are written in one transaction: a run that was killed computes the same set again, in the same batches, and
so the same bits. What is damaged is computed again.
"""

import logging
import sqlite3
import zlib
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from customdiff_core.artifacts import Store
from customdiff_core.recipes import Recipe
from customdiff_core.retrieval.metadata import Vectors

logger = logging.getLogger(__name__)

FILE = "vectors.sqlite"
BUSY_SECONDS = 120.0  # another process may be writing
ASKED = 500  # digests a question
TABLE = "CREATE TABLE IF NOT EXISTS vectors (digest TEXT PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL)"


def embedded(
    digests: Sequence[str], recipe: Recipe, compute: Callable[[list[int]], Vectors], *, store: Store
) -> Vectors:
    """Return the vector of each digest: (N, D) float32.

    Args:
        digests: of what is embedded, by content.
        recipe: of the encoder: its weights, code and libraries.
        compute: embeds those at these places, (n, D); called once at most, with each digest once, and only for new ones.
        store: where the vectors are kept.
    """
    path = store.scratch("embeddings", recipe.key) / FILE
    try:
        known = _read(path, set(digests))
    except sqlite3.OperationalError:
        raise  # held by another process, or unreadable here: the vectors are still there
    except sqlite3.DatabaseError as error:
        logger.warning("%s: %s; embedding anew", path, error)
        path.unlink(missing_ok=True)
        known = {}
    places = {digest: place for place, digest in reversed(list(enumerate(digests))) if digest not in known}
    if places:
        new = sorted(places, key=lambda digest: places[digest])
        vectors = np.asarray(compute([places[digest] for digest in new]), np.float32)
        known |= dict(zip(new, vectors, strict=True))
        _write(path, {digest: known[digest] for digest in new})
    return np.stack([known[digest] for digest in digests])


def forget(digests: Collection[str] | None, store: Store) -> None:
    """Remove the vectors of these, of every encoder; of all where it is not known which. They can be made anew."""
    for path in store.root.glob(f"checkpoints/embeddings/*/{FILE}"):
        if digests is None:
            path.unlink(missing_ok=True)
            continue
        try:
            with _opened(path) as connection:
                connection.execute("PRAGMA secure_delete = ON")  # overwritten, and not only unlisted
                connection.executemany("DELETE FROM vectors WHERE digest = ?", [(one,) for one in digests])
        except sqlite3.OperationalError:
            raise  # held by another process, or a full disk: the vectors are still there
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)  # damaged


@contextmanager
def _opened(path: Path) -> Generator[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
    try:
        with connection:  # one transaction
            connection.execute(TABLE)
            yield connection
    finally:
        connection.close()


def _read(path: Path, digests: set[str]) -> dict[str, Vectors]:
    wanted, found = sorted(digests), dict[str, Vectors]()
    with _opened(path) as connection:
        for start in range(0, len(wanted), ASKED):
            part = wanted[start : start + ASKED]
            marks = ", ".join("?" * len(part))
            rows = connection.execute(f"SELECT * FROM vectors WHERE digest IN ({marks})", part)
            found |= {name: np.frombuffer(data, np.float32) for name, data, sum_ in rows if zlib.crc32(data) == sum_}
    return found


def _write(path: Path, vectors: dict[str, Vectors]) -> None:
    rows = [(digest, data := vector.tobytes(), zlib.crc32(data)) for digest, vector in vectors.items()]
    with _opened(path) as connection:
        connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)
