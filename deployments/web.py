"""A small web on loopback, with what is good and what is bad about the real one: for the bench and the tests.

    python -m deployments.web --port 8123 --latency 0.1

The first part of a path says how the link behaves, the number behind it which picture it is: /ok/17.jpg, /hang/3.jpg ...
"""

import asyncio
import io
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Annotated

import numpy as np
import typer
from PIL import Image

FOREVER = 3600.0
SIDE = 256  # pixels of a picture
LISTEN = 1024  # connections that may wait

Write = Callable[[bytes], Awaitable[None]]


class Web:
    """The server.

    Args:
        latency: seconds before it answers, whatever it answers.
    """

    def __init__(self, latency: float = 0.0) -> None:
        self.latency = latency
        self.asked: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0

    async def start(self, port: int = 0) -> tuple[asyncio.Server, int]:
        """Listen on loopback; return the server and its port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", port, backlog=LISTEN)
        return server, int(server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            path = request.split(b" ", 2)[1].decode()
            self.asked[path] += 1
            await asyncio.sleep(self.latency)

            async def write(data: bytes) -> None:
                writer.write(data)
                await writer.drain()

            await self._answer(path, write)
        except asyncio.CancelledError:
            pass  # the server ends
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it was given up
        finally:
            self.at_once -= 1
            writer.close()

    async def _answer(self, path: str, write: Write) -> None:
        kind, number = path.strip("/").split("/")[0], _number(path)
        if kind == "hang":
            await asyncio.sleep(FOREVER)
        elif kind == "drip":  # always alive, never done
            await write(_head(length=100_000) + picture(number)[:64])
            while True:
                await write(b"\0")
                await asyncio.sleep(0.2)
        elif kind == "endless":
            await write(_head() + picture(number)[:64])
            while True:
                await write(b"\0" * 65536)
        elif kind == "busy" and self.asked[path] > 1:
            await write(_response(picture(number)))
        else:
            await write(_answer(kind, number))


@contextmanager
def serving(latency: float = 0.0) -> Generator[tuple[str, Web]]:
    """Serve from a thread; yield the address, such as http://127.0.0.1:40123, and the server."""
    web = Web(latency)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()

    async def run() -> None:
        server, port = await web.start()
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop, port))
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()))  # whose end cancels what still hangs
    thread.start()
    loop, stop, port = started.result()
    try:
        yield f"http://127.0.0.1:{port}", web
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@lru_cache(maxsize=4096)
def picture(number: int) -> bytes:
    """A JPEG unlike every other: a few large blotches of colour, and some grain."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image = coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels in some kilobytes."""
    side = 20_000
    row = zlib.compressobj(9)
    data = b"".join(row.compress(b"\0" * (side // 8 + 1)) for _ in range(side)) + row.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _answer(kind: str, number: int) -> bytes:
    """What is sent at once."""
    answers: dict[str, Callable[[], bytes]] = {
        "ok": lambda: _response(picture(number)),
        "half-ok": lambda: _response(picture(number)),
        "huge": lambda: _head(length=10**12),  # says so
        "bomb": lambda: _response(bomb()),
        "loop": lambda: _head("302 Found", f"Location: /loop/{number + 1}.jpg", length=0),
        "moved": lambda: _head("301 Moved Permanently", f"Location: /ok/{number}.jpg", length=0),
        "inside": lambda: _head("302 Found", "Location: http://169.254.169.254/latest/meta-data/", length=0),
        "file": lambda: _head("302 Found", "Location: file:///etc/passwd", length=0),
        "html": lambda: _response(b"<html><body>not found, but nicely</body></html>"),
        "compressed": lambda: _response(zlib.compress(b"\0" * 10_000_000), "Content-Encoding: deflate"),
        "noai": lambda: _response(picture(number), "X-Robots-Tag: noai, noimageai"),
        "truncated": lambda: _response(picture(number)[:2000]),
        "busy": lambda: _head("503 Busy", "Retry-After: 0", length=0),
    }
    return answers.get(kind, lambda: _head("404 Not Found", length=0))()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _number(path: str) -> int:
    digits = "".join(one for one in path.rsplit("/", 1)[-1] if one.isdigit())
    return int(digits or 0)


def _head(status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, "Connection: close"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _response(body: bytes, *headers: str) -> bytes:
    return _head("200 OK", *headers, length=len(body)) + body


def main(port: Annotated[int, typer.Option()], latency: Annotated[float, typer.Option(help="seconds")] = 0.0) -> None:
    """Serve until stopped."""

    async def run() -> None:
        server, _ = await Web(latency).start(port)
        async with server:
            await server.serve_forever()

    started = time.monotonic()
    with suppress(KeyboardInterrupt):
        asyncio.run(run())
    typer.echo(f"served for {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    typer.run(main)
