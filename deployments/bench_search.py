"""Search in a large index: built here through build-index, measured beside `clip-retrieval back` on the same folder.

    python -m deployments.bench_search --vectors 2000000 --folder /tmp/large

The vectors are synthetic, 512 wide as ViT-B/32's, in topics with subtopics: what is near to a query is its subtopic, and then its
topic. Every figure says what it was measured on; latency and memory are those of a process of its own.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import numpy.typing as npt
import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from customdiff_core.config import BuildConfig, Runtime
from customdiff_core.profiles import EncoderSource
from customdiff_core.retrieval.building import build_folder
from customdiff_core.retrieval.captioned import ROW_GROUP
from customdiff_core.retrieval.faiss_index import EMBEDDINGS
from customdiff_core.retrieval.metadata import Vectors
from customdiff_core.settings import REPOSITORY, Settings
from deployments.backend import running

WIDTH = 512
PART = 100_000  # vectors of one file
TOPICS, SUBTOPICS = 200, 100
TOPIC, SUBTOPIC, GRAIN = 1.0, 0.7, 0.5  # lengths of what a vector is the sum of
QUERIES = 50
NEAREST = 200
NOBODY = EncoderSource(model="ViT-B-32", tag="openai")  # names the encoder in the report; nothing is embedded


def make_embeddings(folder: Path, count: int) -> None:
    """Write text_emb/ and metadata/ of `count` synthetic captions; parts that are there stay."""
    for name in (EMBEDDINGS["text"], "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, count, PART)):
        rows = min(PART, count - start)
        table = folder / "metadata" / f"metadata_{number:05d}.parquet"
        if table.exists():
            continue
        vectors, topics = draw(rows, ("part", number))
        np.save(folder / EMBEDDINGS["text"] / f"text_emb_{number:05d}.npy", vectors.astype(np.float16))
        captions = [f"caption {start + row} of subtopic {topic}" for row, topic in enumerate(topics)]
        urls = [f"https://host{row % 977}.example/{start + row}.jpg" for row in range(rows)]
        pd.DataFrame({"caption": captions, "url": urls}).to_parquet(table, row_group_size=ROW_GROUP)


def draw(count: int, name: tuple[str, int]) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """Draw unit vectors and their subtopics."""
    centres = np.random.default_rng(0)
    topics = _unit(centres.standard_normal((TOPICS, WIDTH), np.float32)) * TOPIC
    within = _unit(centres.standard_normal((TOPICS * SUBTOPICS, WIDTH), np.float32)) * SUBTOPIC
    random = np.random.default_rng([len(name[0]), name[1] + 1])
    chosen = random.integers(0, TOPICS * SUBTOPICS, count)
    grain = _unit(random.standard_normal((count, WIDTH), np.float32)) * GRAIN
    return _unit(topics[chosen // SUBTOPICS] + within[chosen] + grain), chosen


def exact(folder: Path, queries: Vectors) -> list[set[int]]:
    """The true nearest, compared with every vector."""
    best = np.full((len(queries), NEAREST), -2.0, np.float32)
    ids = np.zeros((len(queries), NEAREST), np.int64)
    start = 0
    for part in sorted((folder / EMBEDDINGS["text"]).glob("*.npy")):
        vectors = np.load(part).astype(np.float32)
        scores = np.concatenate([best, queries @ vectors.T], axis=1)
        numbers = np.concatenate(
            [ids, np.broadcast_to(np.arange(start, start + len(vectors)), (len(queries), len(vectors)))], axis=1
        )
        order = np.argpartition(-scores, NEAREST, axis=1)[:, :NEAREST]
        best, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)
        start += len(vectors)
    return [set(row.tolist()) for row in ids]


def search_here(folder: Path, queries: Vectors) -> dict[str, Any]:
    """Search in a process of its own; return ids, seconds of each search with its rows, and its peak private memory in MB."""
    np.save(folder.parent / "queries.npy", queries)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(folder.parent / "queries.npy"), str(NEAREST)],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


PROGRAM = """
import json, sys, threading, time
from pathlib import Path
import numpy as np
from customdiff_core.retrieval.local import LocalSource
from customdiff_core.retrieval.sources import search
peak = 0
def private():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1024
def watch():
    global peak
    while True:
        peak = max(peak, private())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
started = time.perf_counter()
source = LocalSource(Path(sys.argv[1]))
opened = time.perf_counter() - started
ids, seconds = [], []
for query in np.load(sys.argv[2]):
    started = time.perf_counter()
    hits = search(source, query[None], int(sys.argv[3]))
    seconds.append(time.perf_counter() - started)
    ids.append(hits["item_id"].tolist())
print(json.dumps({"ids": ids, "seconds": seconds, "peak_mb": max(peak, private()), "open_s": opened}))
"""


def search_backend(folder: Path, queries: Vectors) -> dict[str, Any]:
    """Ask `clip-retrieval back` for the same hits with their metadata."""
    with (
        running(folder, folder.parent / "back", "--columns_to_return", '["url","caption"]') as (url, process),
        httpx.Client() as client,
    ):
        ids: list[list[int]] = []
        seconds: list[float] = []
        for query in queries:
            body = {
                "embedding_input": query.tolist(),
                "modality": "text",
                "num_images": NEAREST,
                "num_result_ids": NEAREST,
                "indice_name": "main",
            }
            started = time.perf_counter()
            answer = client.post(f"{url}/knn-service", json=body, timeout=600).json()
            seconds.append(time.perf_counter() - started)
            ids.append([int(hit["id"]) for hit in answer])
        status = Path(f"/proc/{process.pid}/status").read_text()
    private = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return {"ids": ids, "seconds": seconds, "peak_mb": int(private.split()[1]) / 1024}


def recall(found: list[list[int]], true: list[set[int]]) -> float:
    """Share of the true nearest that were found."""
    return float(np.mean([len(set(one) & want) / len(want) for one, want in zip(found, true, strict=True)]))


def measure(folder: Path, count: int, *, backend: bool = True) -> tuple[Table, dict[str, Any]]:
    """Build what is missing, search, and lay the figures out; every size has a folder of its own."""
    embeddings, index = (folder / f"{count}" / name for name in ("embeddings", "index"))
    build_s = 0.0
    if not index.exists():
        make_embeddings(embeddings, count)
        started = time.perf_counter()
        build_folder(embeddings, index, BuildConfig(kind="embeddings"), NOBODY, Runtime())
        build_s = time.perf_counter() - started
    queries, _ = draw(QUERIES, ("queries", 10**6))
    true = exact(index, queries)
    ways = {"local": search_here(index, queries)}
    if backend:
        ways["clip-retrieval back"] = search_backend(index, queries)
    key = json.loads((index / "report.json").read_text())["indices"]["text"]
    size = (index / "text.index").stat().st_size / 1024**3
    table = Table("", "first", "median", "95 %", f"recall@{NEAREST}", "private memory",
                  title=f"{count:,} x {WIDTH}, {key}, {size:.2f} GB, {os.cpu_count()} cores; a search with its rows")  # fmt: skip
    figures: dict[str, Any] = {"key": key, "index_gb": size, "build_s": build_s}
    for name, found in ways.items():
        ms = np.asarray(found["seconds"]) * 1e3
        hit = recall(found["ids"], true)
        middle, high = np.percentile(ms[1:], [50, 95])
        table.add_row(
            name, f"{ms[0]:.0f} ms", f"{middle:.1f} ms", f"{high:.1f} ms", f"{hit:.3f}", f"{found['peak_mb']:.0f} MB"
        )
        figures[name] = {"median_ms": middle, "p95_ms": high, "recall": hit, "peak_mb": found["peak_mb"]}
    return table, figures


def _unit(vectors: Vectors) -> Vectors:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def main(
    vectors: Annotated[int, typer.Option()] = 2_000_000,
    folder: Annotated[Path, typer.Option(help="kept, and used again")] = Settings().store / "bench" / "search",
) -> None:
    """Measure and print."""
    table, figures = measure(folder.resolve(), vectors)
    Console().print(table)
    Console().print_json(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
