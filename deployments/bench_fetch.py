"""Fetching 200 pictures from a web that is partly dead: one after the other, by img2dataset, and by the pool.

    python -m deployments.bench_fetch

All have the same deadline for a link, and decode what they get. The web is a process of its own on loopback that waits 100 ms
before it answers anything; all its links are on one host, so that the limit for a host is lifted to that of all connections.
"""

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from customdiff_core import images
from customdiff_core.config import FetchConfig, Runtime
from customdiff_core.errors import ImageError
from customdiff_core.progress import silent
from customdiff_core.retrieval import fetch as pool
from customdiff_core.retrieval import img2dataset
from customdiff_core.retrieval.fetch import Link, Shelf
from customdiff_core.retrieval.select import overfetch
from customdiff_core.settings import REPOSITORY
from deployments.backend import free_port

WANTED = 200
SIDE = 256  # pixels of a kept picture
LATENCY = 0.1
DEADLINE = 5.0
STRICT = FetchConfig(deadline_s=DEADLINE, silence_s=DEADLINE, retries=0, max_bytes=2 * 1024**2)
USUAL = STRICT.model_copy(update={"silence_s": FetchConfig().silence_s})  # gives a link that says nothing up sooner
RUNTIME = Runtime(connections=32, per_host=32)
# What of a hundred links is what; the rest is fine.
ROTTEN = {"dead": 10, "hang": 10}
HOSTILE = {"dead": 50, "endless": 1, "bomb": 1, "loop": 1, "drip": 1, "inside": 1}

Way = Callable[[Sequence[str], Path], int]


def mixture(base: str, count: int, kinds: dict[str, int], first: int = 0) -> list[str]:
    """Links in a fixed, even mixture."""
    wheel = [kind for kind, share in kinds.items() for _ in range(share)]
    wheel += ["ok"] * (100 - len(wheel))
    return [f"{base}/{wheel[37 * number % 100]}/{number}.jpg" for number in range(first, first + count)]


def sequential(links: Sequence[str], folder: Path) -> int:
    """As the public scripts do it, but with a time-out: the next link when the last is done."""
    kept = 0
    with httpx.Client(timeout=DEADLINE, follow_redirects=True, trust_env=False) as client:
        for link in links:
            with suppress(httpx.HTTPError, ImageError):
                image = images.decode(client.get(link).raise_for_status().content, link)
                (folder / f"{kept}.png").write_bytes(images.encode(image))
                kept += 1
            if kept == WANTED:
                break
    return kept


def by_img2dataset(links: Sequence[str], folder: Path) -> int:
    """All at once, 32 threads."""
    shelf = Shelf(folder)
    img2dataset.fetch(_links(links), shelf, STRICT, RUNTIME, 0, SIDE, silent)
    return len(shelf.notes)


def by_pool(config: FetchConfig) -> Way:
    """All at once, 32 connections."""

    def run(links: Sequence[str], folder: Path) -> int:
        shelf = Shelf(folder)
        pool.fetch(_links(links), shelf, config, RUNTIME, 0, SIDE, silent)
        return len(shelf.notes)

    return run


def compare(base: str, rounds: int = 3) -> Table:
    """Time all ways on a web of which 10 % are dead and 10 % hang; the slow ones once, the pool's median of some."""
    links = mixture(base, overfetch(WANTED, 0.8), ROTTEN)
    table = Table("way", "pictures", "seconds", "the pool is", title=f"{len(links)} links: 10 % dead, 10 % hanging")
    ways: dict[str, tuple[Way, int]] = {
        "one after the other, until 200": (sequential, 1),
        "img2dataset, 32 threads": (by_img2dataset, 1),
        f"pool, {DEADLINE:g} s deadline": (by_pool(STRICT), rounds),
        f"pool, {DEADLINE:g} s deadline, {USUAL.silence_s:g} s silence": (by_pool(USUAL), rounds),
    }
    found = {name: _median(way, links, turns) for name, (way, turns) in ways.items()}
    ours = found[f"pool, {DEADLINE:g} s deadline, {USUAL.silence_s:g} s silence"][1]
    for name, (count, seconds) in found.items():
        table.add_row(name, str(count), f"{seconds:.1f}", f"{seconds / ours:.1f}x as fast")
    return table


def survive(base: str) -> Table:
    """Fetch in rounds from a hostile web; say how long, how much memory, and what became of every kind of link."""
    process = psutil.Process()
    kept, tried, started = 0, 0, time.monotonic()
    statuses: Counter[str] = Counter()
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        shelf = Shelf(Path(name))
        while kept < WANTED:
            links = mixture(
                base, overfetch(WANTED - kept, 0.6 if not tried else max(0.05, kept / tried)), HOSTILE, tried
            )
            config = USUAL.model_copy(update={"max_pixels": 40_000_000})
            pool.fetch(_links(links, tried), shelf, config, RUNTIME, 0, SIDE, silent)
            tried, kept = tried + len(links), len(shelf.notes)
            memory.append(process.memory_info().rss / 1024**2)
        statuses.update(f"{one.url.split('/')[3]}: {one.status}" for one in shelf.attempts())
    table = Table("link: what became of it", "links", title=(
        f"{kept} pictures of {tried} hostile links in {time.monotonic() - started:.1f} s; "
        f"memory after each round {', '.join(f'{one:.0f}' for one in memory)} MB"
    ))  # fmt: skip
    for status, count in sorted(statuses.items()):
        table.add_row(status, str(count))
    return table


@contextmanager
def web() -> Generator[str]:
    """Run the small web in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "deployments.web", "--port", port, "--latency", str(LATENCY)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    try:
        base = f"http://127.0.0.1:{port}"
        while True:
            with suppress(httpx.HTTPError):
                httpx.get(f"{base}/ok/0.jpg")
                break
            time.sleep(0.1)
        yield base
    finally:
        process.terminate()
        process.wait()


def _links(urls: Sequence[str], first: int = 0) -> list[Link]:
    return [Link(first + number, url) for number, url in enumerate(urls)]


def _median(way: Way, links: Sequence[str], turns: int) -> tuple[int, float]:
    found: list[tuple[float, int]] = []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            count = way(links, Path(folder))
            found.append((time.monotonic() - started, count))
    seconds, count = sorted(found)[len(found) // 2]
    return count, seconds


def main() -> None:
    """Measure and print."""
    os.environ["CUSTOMDIFF_ALLOW_LOOPBACK"] = "true"
    logging.disable(logging.WARNING)
    console = Console()
    with web() as base:
        console.print(compare(base))
        console.print(survive(base))


if __name__ == "__main__":
    main()
