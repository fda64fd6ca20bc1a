"""Three places to search captions in, behind one protocol, and one order for what they find.

backend    a `clip-retrieval back`, asked over HTTP        (backend.py)
local      a clip-retrieval index folder, memory-mapped    (local.py)
embedded   the same code on the corpus of the embedded world

The query is embedded here and sent as a vector, so that all of them see the same one.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import RetrieveConfig
from customdiff_core.profiles import Profile
from customdiff_core.retrieval.metadata import Ids, Vectors
from customdiff_core.stages import index_folder

Similarities = npt.NDArray[np.float64]
SPARE = 64  # hits asked for beyond the cut, in which ties with it usually end
DEEPEST = 200_000  # hits; equal captions beyond them stay unordered


class TextEncoder(Protocol):
    """What a source needs of the retrieval CLIP."""

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Embed texts: (N, D)."""
        ...


class Source(Protocol):
    """Captioned images that can be searched by a vector."""

    name: str
    filtered: bool  # whether it drops hits by rules of its own, so that fewer than asked for may not be all

    def check(self, encoder: TextEncoder) -> None:
        """Refuse, before any search, what cannot be searched with this encoder.

        Raises:
            RetrievalError: naming what does not fit.
        """
        ...

    def nearest(self, vector: Vectors, count: int) -> tuple[Ids, Similarities]:
        """Return up to `count` ids and inner products with a unit vector (1, D), in any order."""
        ...

    def rows(self, ids: Ids) -> pd.DataFrame:
        """Return caption, url, image_path, nsfw, watermark and image (bytes or None) of ids, in their order."""
        ...

    def has(self, image_path: str) -> bool:
        """Whether an image lies beside the index: webdatasets have a sample's key in its place, and its url beside it."""
        ...

    def read(self, image_path: str) -> bytes:
        """Return an image that lies beside the index.

        Raises:
            ImageError: if there is none, or its path leaves the folder.
        """
        ...


def open_source(index: Artifact | None, profile: Profile, config: RetrieveConfig, store: Store) -> Source:
    """Open the source that the profile names.

    Raises:
        RetrievalError: if it cannot be opened.
    """
    from customdiff_core.retrieval.backend import BackendSource
    from customdiff_core.retrieval.local import LocalSource

    if profile.corpus.backend is not None:
        folder = store.path(index) if index else profile.corpus.index
        return BackendSource(profile.corpus.backend, config.backend, folder)
    return LocalSource(index_folder(index, profile, store), config.nprobe, "embedded" if index else "local")


def search(source: Source, vector: Vectors, count: int) -> pd.DataFrame:
    """Return the `count` captions nearest to a unit vector (1, D), with their rows.

    Ordered by similarity rounded to 1e-4, then item id; ties at the cut are fetched whole before they are cut, so that
    neither the source nor the number asked for changes which of equal captions come first.
    """
    wanted = count + SPARE
    before = -1
    while True:
        ids, similarity = source.nearest(vector, wanted)
        ids, similarity = _ordered(ids, similarity)
        whole = len(ids) > count and similarity[-1] < similarity[count - 1]
        exhausted = len(ids) == before or (len(ids) < wanted and not source.filtered)
        if whole or exhausted or wanted >= DEEPEST:
            break
        before, wanted = len(ids), min(2 * wanted, DEEPEST)
    ids, similarity = ids[:count], similarity[:count]
    return source.rows(ids).assign(item_id=ids, index_similarity=similarity)


def _ordered(ids: Ids, similarity: Similarities) -> tuple[Ids, Similarities]:
    rounded = np.round(similarity.astype(np.float64), 4)
    order = np.lexsort((ids, -rounded))
    return ids[order].astype(np.int64), rounded[order]
