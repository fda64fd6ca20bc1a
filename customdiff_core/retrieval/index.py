"""An index folder in clip-retrieval's layout, so that its own tools open it too:

    image.index  text.index  img_emb/  text_emb/  metadata/metadata_0000.parquet  images/

`build` fills one with the embedded world; `Index` searches any.
"""

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
from PIL import Image

from customdiff_core import images, tables
from customdiff_core.config import IndexConfig
from customdiff_core.errors import RetrievalError
from customdiff_core.progress import Progress, silent
from customdiff_core.retrieval.encoder import Encoder, Vectors
from customdiff_core.world.drawings import load_drawings
from customdiff_core.world.scenes import CORPUS_BOOST, Scene, render_scene, sample_scenes

CHUNK = 512  # scenes rendered and embedded between two words of progress


def build(
    folder: Path, drawings: Path, size: int, config: IndexConfig, encoder: Encoder, progress: Progress = silent
) -> int:
    """Render captioned scenes, embed them and index them exactly (inner product of unit vectors).

    Args:
        folder: an empty folder.
        drawings: the world's drawings.csv.
        size: side of a scene in pixels.
        config: how many scenes, and their seed.
        encoder: the retrieval CLIP.
        progress: told after every chunk.

    Returns:
        The number of scenes.
    """
    scenes = sample_scenes(load_drawings(drawings), config.scenes, config.seed, purpose="corpus", boost=CORPUS_BOOST)
    (folder / "images").mkdir()
    parts: list[Vectors] = []
    for start in range(0, len(scenes), CHUNK):
        pictures = [render_scene(scene, size) for scene in scenes[start : start + CHUNK]]
        _save_images(folder, pictures, start)
        parts.append(encoder.images(pictures))
        progress(min(start + CHUNK, len(scenes)), len(scenes), "scenes rendered and embedded")
    texts = encoder.texts([scene.caption for scene in scenes])
    _write_embeddings(folder, "img_emb", "image.index", np.concatenate(parts))
    _write_embeddings(folder, "text_emb", "text.index", texts)
    _write_metadata(folder, scenes)
    return len(scenes)


class Index:
    """A clip-retrieval folder, searched by its captions' embeddings.

    Raises:
        RetrievalError: if the folder is not a text index with as many captions as vectors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "text.index"
        if not path.is_file():
            raise RetrievalError(f"index {folder}: found no text.index, need a clip-retrieval folder; build one first")
        parts = sorted((folder / "metadata").glob("*.parquet"))
        if not parts:
            raise RetrievalError(
                f"index {folder}: found no metadata/*.parquet, need the captions; copy the folder again"
            )
        try:
            self._index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise RetrievalError(
                f"index {folder}: found a text.index that faiss cannot read, need a whole one; copy the folder again"
            ) from error
        self.metadata = pd.concat([pd.read_parquet(part) for part in parts])
        if missing := {"caption", "image_path"} - set(self.metadata.columns):
            raise RetrievalError(
                f"index {folder}: found no column {missing.pop()} in metadata/, need caption and image_path"
            )
        if len(self.metadata) != self._index.ntotal:
            raise RetrievalError(
                f"index {folder}: found {self._index.ntotal} vectors and {len(self.metadata)} captions, need as many; "
                "build it again"
            )

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, vector: Vectors, count: int) -> pd.DataFrame:
        """Return the `count` captions nearest to a unit vector (1, D): item_id, similarity, caption, image_path.

        Ordered by similarity rounded to 1e-4, then item id, so that equal captions have one order everywhere.

        Raises:
            RetrievalError: if the vector's width is not the index's.
        """
        if vector.shape[1] != self._index.d:
            raise RetrievalError(
                f"index {self.folder}: found width {self._index.d}, need {vector.shape[1]} of the retrieval encoder; "
                "use the encoder that the index was built with"
            )
        similarity, ids = self._index.search(vector, len(self) if count >= len(self) else _with_ties(count, len(self)))
        found = ids[0] >= 0  # an approximate index fills what it did not find with -1
        hits = self.metadata.iloc[ids[0][found]][["caption", "image_path"]].copy()
        hits["item_id"], hits["similarity"] = ids[0][found], np.round(similarity[0][found].astype(np.float64), 4)
        ordered = hits.sort_values(["similarity", "item_id"], ascending=[False, True], kind="stable")
        return ordered.head(count).reset_index(drop=True)

    def read_image(self, image_path: str) -> bytes:
        """Return an indexed image's bytes.

        Raises:
            ImageError: for a path that leaves the folder.
        """
        return images.read_picture(self.folder / image_path, self.folder)


def _with_ties(count: int, total: int) -> int:
    """Ask for more than is kept, so that equal similarities at the cut are ordered by id and not by chance."""
    return min(total, 2 * count + 64)


def _save_images(folder: Path, pictures: Sequence[Image.Image], start: int) -> None:
    for number, picture in enumerate(pictures, start):
        (folder / _image_path(number)).parent.mkdir(exist_ok=True)
        (folder / _image_path(number)).write_bytes(images.encode(picture))


def _image_path(number: int) -> str:
    return f"images/{number // 1000:03d}/{number:06d}.png"


def _write_embeddings(folder: Path, kind: str, name: str, vectors: Vectors) -> None:
    (folder / kind).mkdir()
    np.save(folder / kind / f"{kind}_0000.npy", vectors.astype(np.float16))
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(folder / name))


def _write_metadata(folder: Path, scenes: Sequence[Scene]) -> None:
    (folder / "metadata").mkdir()
    rows = [
        {"image_path": _image_path(number), "caption": scene.caption, "url": ""} for number, scene in enumerate(scenes)
    ]
    tables.write(folder / "metadata" / "metadata_0000.parquet", rows)
