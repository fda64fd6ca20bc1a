"""Fetch many links at a time and keep what they give: the pool of connections, and img2dataset for very many."""

import asyncio
import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal

from customdiff_core.config import FetchConfig, Runtime
from customdiff_core.errors import FetchError, ImageError
from customdiff_core.progress import Progress
from customdiff_core.retrieval.addresses import GuardedTransport, check_link
from customdiff_core.retrieval.decoder import Decoders, Picture
from customdiff_core.retrieval.download import download
from customdiff_core.settings import Settings

HELD = 2  # pictures waiting for a decoder, as a multiple of the connections

Read = Callable[[], bytes]


@dataclass(frozen=True)
class Link:
    """One candidate's image: a URL, or a way to read it from beside the index.

    Args:
        item_id: its row in the index.
        url: empty where it has none.
        read: of an image beside the index.
        content: what tells that image from others: row numbers mean something else when an index is built anew.
    """

    item_id: int
    url: str
    read: Read | None = None
    content: str = ""

    @property
    def digest(self) -> str:
        """What its picture is kept under."""
        return url_digest(self.url) if self.read is None else url_digest(f"item:{self.item_id}:{self.content}")


@dataclass(frozen=True)
class Attempt:
    """One try of one link: a row of attempts.parquet."""

    item_id: int
    url: str
    host: str
    status: str
    error: str
    seconds: float
    round: int
    attempt: int


def url_digest(url: str) -> str:
    """What a link is known by in the store."""
    return hashlib.sha256(url.encode()).hexdigest()


class Shelf:
    """What a retrieval has so far, in a folder that outlives a killed process: pictures, and every try.

    Pictures are whole or absent; a torn last line of the log is ignored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        self._log = folder / "attempts.jsonl"
        with self._log.open("a") as file:
            file.write("\n")  # what was being written when a process died is then a line of its own
        for torn in (folder / "pictures").glob("*.tmp"):
            torn.unlink()
        self.notes: dict[str, dict[str, Any]] = {
            path.stem: json.loads(path.read_text()) for path in (folder / "pictures").glob("*.json")
        }

    def __contains__(self, link: Link) -> bool:
        return link.digest in self.notes

    def put(self, link: Link, picture: Picture, round_: int) -> None:
        """Keep a picture: the bytes first, then what is known of it, by which it is there."""
        base = self.folder / "pictures" / link.digest
        note = {key: value for key, value in asdict(picture).items() if key != "png"} | {"round": round_}
        _write(base.with_suffix(".png"), picture.png)
        _write(base.with_suffix(".json"), json.dumps(note).encode())
        self.notes[link.digest] = note

    def picture(self, link: Link) -> Picture:
        """Return a kept picture."""
        note = {key: value for key, value in self.notes[link.digest].items() if key != "round"}
        return Picture(png=(self.folder / "pictures" / f"{link.digest}.png").read_bytes(), **note)

    def log(self, attempt: Attempt) -> None:
        """Append a try."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(attempt)) + "\n")

    def attempts(self) -> list[Attempt]:
        """Every try so far, those before a crash included."""
        return list(_whole(self._log.read_text(encoding="utf-8").splitlines()))


def fetch(
    links: Sequence[Link],
    shelf: Shelf,
    config: FetchConfig,
    runtime: Runtime,
    round_: int,
    side: int,
    progress: Progress,
) -> dict[int, str]:
    """Fetch links and decode what they give onto the shelf.

    Args:
        links: which; those on the shelf already are not fetched again.
        shelf: where pictures and tries go.
        config: what one link may cost.
        runtime: connections at a time, and from one host.
        round_: for the log.
        side: shorter side of a kept picture, in pixels.
        progress: told after every link.

    Returns:
        Why not, by item id, for the links that gave no picture.
    """
    todo = [link for link in links if link not in shelf]
    for link in links:
        if link in shelf:
            shelf.log(Attempt(link.item_id, link.url, "", "kept", "", 0.0, round_, 0))
    pool = _Pool(shelf, config, runtime, round_, side, progress)
    with start_blocking_portal() as portal:  # a loop in a thread of its own: the caller may have one
        return portal.call(pool.run, todo)


class _Pool:
    def __init__(
        self, shelf: Shelf, config: FetchConfig, runtime: Runtime, round_: int, side: int, progress: Progress
    ) -> None:
        self._shelf, self._config, self._round, self._side = shelf, config, round_, side
        self._progress, self._runtime = progress, runtime
        self._hosts: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(runtime.per_host))
        self._connections = asyncio.Semaphore(runtime.connections)
        self._held = asyncio.Semaphore(HELD * runtime.connections)
        self._failed: dict[int, str] = {}
        self._done = 0

    async def run(self, links: Sequence[Link]) -> dict[int, str]:
        loopback = Settings().allow_loopback
        cores = min(4, os.cpu_count() or 1)
        async with (
            GuardedTransport(self._runtime.connections, allow_loopback=loopback) as transport,
            Decoders(cores, self._config.max_pixels, self._side) as decoders,
        ):
            try:
                async with asyncio.TaskGroup() as group:
                    for link in links:
                        group.create_task(self._one(link, transport, decoders, len(links)))
            except ExceptionGroup as errors:  # such as a full disk: the first says it, and the store knows what to do
                raise errors.exceptions[0] from errors
        return self._failed

    async def _one(self, link: Link, transport: GuardedTransport, decoders: Decoders, total: int) -> None:
        """Try a link until it gives a picture, fails for good, or has had its tries."""
        for attempt in range(self._config.retries + 1):
            wait = await self._try(link, transport, decoders, attempt)
            if wait is None:
                break
            await asyncio.sleep(wait)
        self._done += 1
        self._progress(self._done, total, "links tried")

    async def _try(self, link: Link, transport: GuardedTransport, decoders: Decoders, attempt: int) -> float | None:
        """Make one try; return the seconds before another may succeed, or None."""
        started, host, status, error, wait = time.monotonic(), "", "ok", "", None
        try:
            if link.read is not None:
                async with self._held:  # no more files in memory than decoders are about to want
                    picture = await decoders.decode(link.read())
            else:
                host = check_link(link.url)
                async with self._held:
                    async with self._hosts[host], self._connections:
                        started = time.monotonic()
                        data = await download(transport, link.url, self._config)
                    picture = await decoders.decode(data)
            self._shelf.put(link, picture, self._round)
            self._failed.pop(link.item_id, None)
        except FetchError as problem:
            status, error, wait = problem.status, str(problem), problem.wait_s
            self._failed[link.item_id] = status
        except ImageError as problem:  # beside the index, and no picture
            status, error = "not_image", str(problem)
            self._failed[link.item_id] = status
        seconds = round(time.monotonic() - started, 3)
        self._shelf.log(Attempt(link.item_id, link.url, host, status, error, seconds, self._round, attempt))
        return wait


def _whole(lines: Sequence[str]) -> Iterator[Attempt]:
    for line in lines:
        try:
            yield Attempt(**json.loads(line))
        except (ValueError, TypeError):
            continue


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.rename(path)
