"""An index folder in clip-retrieval's layout, searched where it lies: a mapped file, or a merged folder of two.

text.index or image.index     one file; or a folder with populated.index and merged_index.ivfdata
metadata/*.parquet            caption, url and/or image_path, in the order of the vectors
text_emb/ img_emb/ images/    where there
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd

from customdiff_core import images
from customdiff_core.errors import RetrievalError
from customdiff_core.retrieval.faiss_index import EMBEDDINGS, probed, vectors_of
from customdiff_core.retrieval.metadata import Ids, Metadata, Vectors
from customdiff_core.retrieval.sources import Similarities, TextEncoder

MAPPED = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY
# A merged folder read with the flags of a single file opens well and then crashes the process on its first search.
MERGED = faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY
PROBED = 16  # captions looked up again, to see whether metadata and encoder belong to the vectors
NEAR, FAR = 16, 1000  # hits among which a caption should find an equal one, or itself


class LocalSource:
    """A clip-retrieval folder; the captions' index where there is one, otherwise the images'.

    Args:
        folder: the folder.
        nprobe: cells searched of an IVF index; None: by its size, and more where more hits are asked for than they hold.
        name: what tables call it.

    Raises:
        RetrievalError: naming what is wrong with the folder.
    """

    filtered = False

    def __init__(self, folder: Path, nprobe: int | None = None, name: str = "local") -> None:
        self.folder, self.name = folder, name
        self.modality, path = _index_path(folder)
        self._index = _read(folder, path)
        self.metadata = Metadata(folder / "metadata")
        if self._index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise RetrievalError(
                f"index {folder}: found {path.name} with L2 distances, need inner products; build it with metric_type ip"
            )
        if not len(self):
            raise RetrievalError(f"index {folder}: found no vector in {path.name}, need some; build it again")
        if len(self.metadata) != len(self):
            raise RetrievalError(
                f"index {folder}: found {len(self)} vectors and {len(self.metadata)} captions, need as many; "
                "build it again"
            )
        _check_parts(folder, self.modality, self.metadata)
        self._cells = _Cells.of(self._index, nprobe)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def check(self, encoder: TextEncoder) -> None:
        """Refuse another width, and captions that do not find themselves: another encoder, or metadata out of order."""
        ids = np.unique(np.linspace(0, len(self) - 1, PROBED).astype(np.int64))
        captions = self.metadata.rows(ids)["caption"].tolist()
        vectors = encoder.texts(captions)
        self._check_width(vectors)
        if self.modality == "image":  # a caption need not be near to its own picture
            return
        hits = sum(self._finds(*one) for one in zip(ids.tolist(), captions, vectors, strict=True))
        if 2 * hits < len(captions):
            raise RetrievalError(
                f"index {self.folder}: found {hits} of {len(captions)} captions near to their own vectors, need most of them; "
                "use the encoder that it was built with, and metadata in the order of the vectors"
            )

    def nearest(self, vector: Vectors, count: int) -> tuple[Ids, Similarities]:
        """See `Source`."""
        self._check_width(vector)
        count = min(count, len(self))
        hnsw = getattr(faiss.downcast_index(self._index), "hnsw", None)
        if hnsw is not None:
            hnsw.efSearch = max(hnsw.efSearch, 2 * count)
        similarity, ids = self._cells.search(np.ascontiguousarray(vector, np.float32), count)
        found = ids[0] >= 0  # an approximate index fills what it did not find with -1
        return ids[0][found], similarity[0][found].astype(np.float64)

    def rows(self, ids: Ids) -> pd.DataFrame:
        """See `Source`."""
        return self.metadata.rows(ids).assign(image=None)

    def has(self, image_path: str) -> bool:
        """See `Source`."""
        return images.lies_in(self.folder / image_path, self.folder)

    def read(self, image_path: str) -> bytes:
        """See `Source`."""
        return images.read_picture(self.folder / image_path, self.folder)

    def _finds(self, item: int, caption: str, vector: Vectors) -> bool:
        """Whether a caption's vector leads back to it, or to an equal caption; a quantized index is allowed to be near."""
        ids, similarity = self.nearest(vector[None], min(FAR, max(NEAR, len(self) // 50)))
        nearest = ids[np.argsort(-similarity, kind="stable")[:NEAR]]
        return item in ids or caption in set(self.rows(nearest)["caption"])

    def _check_width(self, vectors: Vectors) -> None:
        if vectors.shape[1] != self._index.d:
            raise RetrievalError(
                f"index {self.folder}: found width {self._index.d}, need {vectors.shape[1]} of the retrieval encoder; "
                "use the encoder that the index was built with"
            )


def _index_path(folder: Path) -> tuple[str, Path]:
    for modality in ("text", "image"):
        path = folder / f"{modality}.index"
        if path.is_dir():
            return modality, path / "populated.index"
        if path.is_file():
            return modality, path
    raise RetrievalError(
        f"index {folder}: found no text.index or image.index, need a clip-retrieval folder; build one first"
    )


def _read(folder: Path, path: Path) -> Any:
    merged = path.name == "populated.index"
    if merged and not (path.parent / "merged_index.ivfdata").is_file():
        raise RetrievalError(
            f"index {folder}: found {path.parent.name}/populated.index without merged_index.ivfdata, need both; copy it again"
        )
    try:
        return faiss.read_index(str(path), MERGED if merged else MAPPED)
    except RuntimeError as error:
        raise RetrievalError(
            f"index {folder}: found a {path.name} that faiss cannot read, need a whole one; copy the folder again"
        ) from error


def _check_parts(folder: Path, modality: str, metadata: Metadata) -> None:
    """Where the embeddings are beside, part by part as many rows as captions: otherwise the order is another one."""
    parts = sorted((folder / EMBEDDINGS[modality]).glob("*.npy"))
    rows = [len(vectors_of(part)) for part in parts]
    if len(parts) != len(metadata.parts):  # joined or absent: nothing to compare
        return
    for part, table, here, there in zip(parts, metadata.parts, rows, metadata.part_rows, strict=True):
        if here != there:
            raise RetrievalError(
                f"index {folder}: found {there} rows in metadata/{table.name} beside {here} vectors in {part.name}, need the "
                "parts in the same order; build the metadata again"
            )


@dataclass(frozen=True)
class _Cells:
    """An index, and how many cells of it are searched where it has cells.

    Args:
        index: as it was read.
        ivf: its inverted file; None for an index without cells.
        probes: cells that a search looks into.
        fixed: somebody said how many: no more where they do not hold as many hits as are asked for.
        effort: of the graph that finds the cells, as it was stored.
    """

    index: Any
    ivf: Any
    probes: int
    fixed: bool
    effort: int

    @classmethod
    def of(cls, index: Any, nprobe: int | None) -> "_Cells":
        ivf = faiss.try_extract_index_ivf(index)
        if ivf is None:
            return cls(index, None, 0, True, 0)
        probes = min(ivf.nlist, nprobe or max(ivf.nprobe, probed(ivf.nlist)))  # a merged index is stored with 1
        graph = getattr(faiss.downcast_index(ivf.quantizer), "hnsw", None)
        return cls(index, ivf, probes, nprobe is not None, graph.efSearch if graph else 0)

    def search(self, vector: Vectors, count: int) -> tuple[Any, Any]:
        """Similarities and ids, (1, count); every search begins at the same number of cells, whatever was asked before."""
        probes = self.probes
        while True:
            self._look_into(probes)
            similarity, ids = self.index.search(vector, count)
            if self.fixed or probes >= self.ivf.nlist or (ids[0] >= 0).all():
                return similarity, ids
            probes *= 2

    def _look_into(self, probes: int) -> None:
        if self.ivf is None:
            return
        self.ivf.nprobe = min(probes, self.ivf.nlist)
        graph = getattr(faiss.downcast_index(self.ivf.quantizer), "hnsw", None)
        if graph is not None:
            graph.efSearch = max(self.effort, 2 * self.ivf.nprobe)
