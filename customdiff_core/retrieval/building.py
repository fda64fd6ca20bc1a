"""Build an index folder of anybody's captioned images: what `local.py` and `clip-retrieval back` both open.

    urls         a Parquet of links and captions -> img2dataset -> embeddings -> autofaiss
    folder       name.jpg beside name.txt        -> embeddings -> autofaiss
    embeddings   ready .npy in clip-retrieval's layout         -> autofaiss

Everything happens in `<out>.building`, part by part, and is renamed at the end. A part's metadata is written last: a part that has
it is whole, and whatever else a crash left of a part is made again.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from customdiff_core import images
from customdiff_core.artifacts import write_atomic
from customdiff_core.config import BuildConfig, Runtime
from customdiff_core.errors import RetrievalError
from customdiff_core.profiles import EncoderSource
from customdiff_core.progress import Progress, silent
from customdiff_core.recipes import digest_of, settings
from customdiff_core.retrieval.captioned import (
    ROW_GROUP,
    Row,
    downloaded,
    link,
    prepare_links,
    read_pairs,
    rows_of,
)
from customdiff_core.retrieval.encoder import Encoder, batches
from customdiff_core.retrieval.faiss_index import EMBEDDINGS, build_faiss, vectors_of
from customdiff_core.retrieval.img2dataset import download, finished
from customdiff_core.retrieval.metadata import Metadata, Vectors
from customdiff_core.weights import encoder_digest

SAMPLE = 256  # vectors whose length is checked
UNIT = 0.02  # that a unit vector's length may be off, in half precision


def build_folder(
    source: Path,
    out: Path,
    config: BuildConfig,
    encoder: EncoderSource,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Path:
    """Build an index folder, or go on building it.

    Args:
        source: a Parquet file or a folder of them; a folder of images and captions; or a folder of embeddings.
        out: the new folder.
        config: what the source is, and how large the index may be.
        encoder: any open_clip model; retrieval must use the same one.
        runtime: device, and img2dataset's threads.
        progress: told while links are tried, rows embedded and vectors indexed.

    Returns:
        `out`, with report.json: what was found, what was dropped and why.

    Raises:
        RetrievalError: if the source cannot be used, or a half-built folder of other settings is in the way.
    """
    if out.exists():
        raise RetrievalError(f"index {out}: found it built already, need a new folder; remove it or choose another")
    work = out.with_name(f"{out.name}.building")
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / ".lock", timeout=0):
            _check_settings(work, source, config, encoder)
            report = _SOURCES[config.kind](source, work, config, _embedder(work, encoder, runtime), runtime, progress)
            _count(work)
            report |= {"encoder": encoder.name, "rows": len(Metadata(work / "metadata"))}
            report["indices"] = build_faiss(work, config, runtime, progress)
            write_atomic(work / "report.json", json.dumps(report, indent=1).encode())
            for leftover in ("shards", "links"):
                shutil.rmtree(work / leftover, ignore_errors=True)
            work.rename(out)
    except Timeout as error:
        raise RetrievalError(f"index {out}: found another process building it, need one; wait for it") from error
    return out


class Embedder:
    """Embeds one part and writes its files, metadata last."""

    def __init__(self, work: Path, encoder: Callable[[], Encoder]) -> None:
        self._work, self._encoder = work, encoder
        self._made: Encoder | None = None

    def done(self, name: str) -> bool:
        """Whether a part is whole."""
        return self._metadata(name).exists()

    def embed(self, name: str, rows: Sequence[Row], pictures: Sequence[bytes] | None) -> None:
        """Embed captions and, where there are any, pictures; `rows` are their metadata."""
        if not rows:
            return
        encoder = self._made = self._made or self._encoder()
        self._save("text", name, encoder.texts([row["caption"] for row in rows]))
        if pictures is not None:
            opened = (images.decode(data, f"{name}, row {row}") for row, data in enumerate(pictures))
            self._save("image", name, encoder.images(opened))
        path = self._metadata(name)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        pq.write_table(pa.Table.from_pylist(list(rows)), temporary, compression="zstd", row_group_size=ROW_GROUP)
        temporary.rename(path)

    def _save(self, kind: str, name: str, vectors: Vectors) -> None:
        folder = self._work / EMBEDDINGS[kind]
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{EMBEDDINGS[kind]}_{name}.npy", vectors.astype(np.float16))

    def _metadata(self, name: str) -> Path:
        return self._work / "metadata" / f"metadata_{name}.parquet"


def _embedder(work: Path, encoder: EncoderSource, runtime: Runtime) -> Embedder:
    return Embedder(work, lambda: Encoder(encoder, runtime.device))


def _from_urls(
    source: Path, work: Path, config: BuildConfig, embedder: Embedder, runtime: Runtime, progress: Progress
) -> Row:
    total, refused = prepare_links(source, work / "links")
    if config.captions_only:
        listed = sorted((work / "links").glob("*.parquet"))
        rows = (row for part in listed for row in rows_of(part))
        for number, part in enumerate(batches(rows, config.shard)):
            if not embedder.done(f"{number:05d}"):
                embedder.embed(f"{number:05d}", part, None)
            progress(min((number + 1) * config.shard, total), total, "captions embedded")
        return {"links": total, "refused": refused}

    def embed_finished() -> None:
        """While img2dataset goes on: embed what it has finished, and give its disk back."""
        for shard in finished(work / "shards"):
            if shard.exists():
                if not embedder.done(shard.stem):
                    rows, pictures = downloaded(shard)
                    embedder.embed(shard.stem, rows, pictures)
                shard.unlink()

    columns = [name for name in ("nsfw", "watermark") if name in pq.read_schema(next((work / "links").glob("*"))).names]
    found = download(
        work / "links", work / "shards", config.fetch, runtime, total, progress,
        image_size=config.image_size, columns=columns, caption=True, shard=config.shard, between=embed_finished,
    )  # fmt: skip
    return {"links": total, "refused": refused, "img2dataset": found}


def _from_folder(
    source: Path, work: Path, config: BuildConfig, embedder: Embedder, runtime: Runtime, progress: Progress
) -> Row:
    del runtime
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in images.SUFFIXES)
    pairs = [path for path in paths if path.with_suffix(".txt").is_file()]
    if not pairs:
        raise RetrievalError(
            f"{source}: found no image with a caption, need name.jpg beside name.txt; add the captions"
        )
    damaged: list[str] = []
    for number, part in enumerate(batches(pairs, config.shard)):
        if not embedder.done(f"{number:05d}"):
            rows, pictures = read_pairs(part, source, work, damaged)
            embedder.embed(f"{number:05d}", rows, pictures)
        progress(min((number + 1) * config.shard, len(pairs)), len(pairs), "images embedded")
    return {"images": len(paths), "without_caption": len(paths) - len(pairs), "damaged": damaged}


def _from_embeddings(
    source: Path, work: Path, config: BuildConfig, embedder: Embedder, runtime: Runtime, progress: Progress
) -> Row:
    """Link the files where they are: a copy of a terabyte serves nobody."""
    del config, embedder, runtime, progress
    Metadata(source / "metadata")
    for name in ("metadata", *EMBEDDINGS.values()):
        for path in sorted((source / name).glob("*.*")):
            (work / name).mkdir(exist_ok=True)
            link(path, work / name / path.name)
    return {"source": str(source)}


_SOURCES = {"urls": _from_urls, "folder": _from_folder, "embeddings": _from_embeddings}


def _check_settings(work: Path, source: Path, config: BuildConfig, encoder: EncoderSource) -> None:
    """A half-built folder goes on only with the settings and files that it was begun with."""
    if not source.exists():
        raise RetrievalError(f"{source}: found nothing there, need the {config.kind} to index; correct the path")
    found = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    files = [path for path in found if work not in path.parents]
    # Parts are told by their numbers: a file more, and each would begin elsewhere.
    content = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    own = digest_of([settings(config), str(source.resolve()), content, encoder_digest(encoder)])
    path = work / "settings.json"
    if path.exists() and json.loads(path.read_text()) != own:
        raise RetrievalError(
            f"index {work}: found it half built from another source, from files that changed since, or with other settings, need "
            "the same; remove it to begin anew"
        )
    write_atomic(path, json.dumps(own).encode())


def _count(work: Path) -> None:
    """Check, before hours of indexing, that vectors and rows are as many, alike in width and of unit length."""
    rows = Metadata(work / "metadata").part_rows
    found = False
    for folder in (work / name for name in EMBEDDINGS.values()):
        arrays = [vectors_of(part) for part in sorted(folder.glob("*.npy"))]
        if not arrays:
            continue
        found = True
        if sum(rows) != sum(map(len, arrays)):
            counts = f"{sum(map(len, arrays))} vectors and {sum(rows)} rows of metadata"
            raise RetrievalError(f"{folder}: found {counts}, need as many; embed the missing part again")
        if len({one.shape[1] for one in arrays}) > 1:
            raise RetrievalError(f"{folder}: found vectors of several widths, need one encoder's; embed them again")
        lengths = np.linalg.norm(np.asarray(arrays[0][:SAMPLE], np.float32), axis=1)
        if np.abs(lengths - 1).max() > UNIT:
            worst = lengths[np.abs(lengths - 1).argmax()]
            raise RetrievalError(f"{folder}: found a vector of length {worst:.3f}, need unit vectors; normalise them")
    if not found:
        raise RetrievalError(
            f"{work}: found no embeddings, need {' or '.join(EMBEDDINGS.values())}; nothing was embedded"
        )
