"""An index folder in clip-retrieval's layout, so that its own tools open it too:

    image.index  text.index  img_emb/  text_emb/  metadata/metadata_0000.parquet  images/

`build` fills one with the embedded world, `building.py` with anything else, and `local.py` searches any.
"""

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
from PIL import Image

from customdiff_core import images, tables
from customdiff_core.config import IndexConfig
from customdiff_core.progress import Progress, silent
from customdiff_core.retrieval.encoder import Encoder
from customdiff_core.retrieval.metadata import Vectors
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
