"""The index over a folder of embeddings: which kind for how many vectors in how much memory, built by autofaiss."""

import json
import logging
import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from customdiff_core.config import BuildConfig, Runtime
from customdiff_core.errors import RetrievalError
from customdiff_core.progress import Progress
from customdiff_core.retrieval.metadata import Vectors

EMBEDDINGS = {"text": "text_emb", "image": "img_emb"}
UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
EXACT = 25_000  # vectors up to which every one is compared
MOST_CELLS = 65_536
ID = 8  # bytes of a vector's number
SHARE = 0.8  # of the free memory that training may use


def build_faiss(work: Path, config: BuildConfig, runtime: Runtime, progress: Progress) -> dict[str, str]:
    """Build text.index and image.index, those for which there are embeddings and which are not there yet.

    Returns:
        The FAISS factory string of each.

    Raises:
        RetrievalError: if the memory is too small for the vectors, or autofaiss made none.
    """
    del runtime
    keys: dict[str, str] = {}
    for number, (kind, name) in enumerate(EMBEDDINGS.items()):
        parts = sorted((work / name).glob("*.npy"))
        if not parts:
            continue
        arrays = [vectors_of(part) for part in parts]
        count, width = sum(map(len, arrays)), int(arrays[0].shape[1])
        keys[kind] = config.index_key or index_key(count, width, budget(config.memory))
        if not (work / f"{kind}.index").exists():
            progress(number, len(EMBEDDINGS), f"indexing {count:,} {kind} vectors as {keys[kind]}")
            _autofaiss(work / name, work / f"{kind}.index", keys[kind], config.memory)
    progress(len(EMBEDDINGS), len(EMBEDDINGS), "indexed")
    return keys


def vectors_of(path: Path) -> Vectors:
    """Map a part's vectors: (N, D), of whatever float type.

    Raises:
        RetrievalError: if it is no whole file of vectors.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RetrievalError(f"{path}: found no whole .npy ({error}), need one; copy or embed it again") from error
    if found.ndim != 2:
        raise RetrievalError(
            f"{path}: found an array of {found.ndim} dimensions, need vectors (N, D); embed them again"
        )
    return found


def index_key(count: int, width: int, memory: int) -> str:
    """Choose a FAISS factory string, of those that autofaiss builds for inner products.

    Exact up to EXACT vectors. Then cells (4 sqrt(n), a power of two), which hold whole vectors where those fit the memory, or
    else codes of as many bytes as do (product quantization).

    Raises:
        RetrievalError: if not even the shortest codes fit.
    """
    if count <= EXACT:
        return "Flat"
    cells = min(MOST_CELLS, 2 ** round(math.log2(4 * math.sqrt(count))))
    room = memory // count - ID
    if room >= 4 * width:
        return f"IVF{cells},Flat"
    sizes = [size for part in (2, 4, 8, 16, 32) if width % part == 0 and (size := width // part) >= ID]
    size = next((size for size in sizes if size <= room), None)
    if size is None:
        need = count * (min(sizes, default=width) + ID)
        raise RetrievalError(
            f"index memory: found {memory:,} bytes for {count:,} vectors, need {need:,}; raise memory, or index fewer"
        )
    # Without OPQ's rotation, whose constructor autofaiss 2.18 calls in a way that this FAISS does not know.
    return f"Pad{width},IVF{cells}_HNSW32,PQ{size}x8"


def probed(cells: int) -> int:
    """How many cells to search, unless somebody says otherwise: one in 64, and at least 16."""
    return min(cells, max(16, cells // 64))


def budget(text: str) -> int:
    """Bytes of "4G"."""
    return int(float(text[:-1]) * UNITS[text[-1]])


def _autofaiss(embeddings: Path, path: Path, key: str, memory: str) -> None:
    """Build into a temporary file, since autofaiss may end without an index and without an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its command line's library
        import faiss
        from autofaiss import build_index

    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)  # of a run that was killed
    options: dict[str, Any] = {}
    if found := re.search(r"IVF(\d+)", key):  # stated, since autofaiss would search for a number by trying
        probes = probed(int(found[1]))
        options["index_param"] = f"nprobe={probes}" + (f",quantizer_efSearch={2 * probes}" if "HNSW" in key else "")
    threads = faiss.omp_get_max_threads()
    build_index(
        str(embeddings),
        index_path=str(temporary),
        index_infos_path=str(path.with_suffix(".json")),
        index_key=key,
        max_index_memory_usage=memory,
        current_memory_available=f"{max(1, int(SHARE * psutil.virtual_memory().available / 1024**2))}M",
        metric_type="ip",
        should_be_memory_mappable=True,
        nb_cores=int(os.environ.get("OMP_NUM_THREADS", "0")) or None,
        verbose=logging.ERROR,
        **options,
    )
    faiss.omp_set_num_threads(threads)  # autofaiss leaves its own number behind, for PyTorch in this process too
    if not temporary.exists():
        raise RetrievalError(
            f"{path}: found no index after autofaiss ended, need more memory than {memory}; free some or give another index_key"
        )
    temporary.rename(path)
    infos = json.loads(path.with_suffix(".json").read_text()) if path.with_suffix(".json").exists() else {}
    logging.getLogger(__name__).info("%s: %s, %s", path.name, key, infos.get("size in bytes", "size unknown"))
