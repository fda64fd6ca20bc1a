"""Decode pictures of strangers in a process that may die.

    python -m customdiff_core.retrieval.decoder < requests > answers

A picture can crash a decoder, or make it eat memory or time. Here that costs one small process with limits of its own
and no environment; the picture is given up, and the next one gets a new process. What comes back is a plain PNG.
"""

import asyncio
import hashlib
import json
import resource
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from PIL import Image

from customdiff_core import images
from customdiff_core.errors import FetchError, ImageError

MEMORY = 2 * 1024**3  # bytes of address space
SECONDS = 15.0  # for one picture
FRAME = struct.Struct(">II")  # lengths of the JSON and of the picture
SIZE = 32  # side of the grey picture behind the perceptual hash
BITS = 8  # side of the block of its lowest frequencies


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Args:
        png: upright RGB, as it is kept.
        sha256: of the bytes as they came.
        width, height: as kept, in pixels.
        phash: 64 bits that nearly equal pictures nearly share.
    """

    png: bytes
    sha256: str
    width: int
    height: int
    phash: int


class Decoders:
    """A few decoding processes, started when needed: `async with Decoders(2, max_pixels, side) as decoders`."""

    def __init__(self, count: int, max_pixels: int, side: int) -> None:
        self._request = {"max_pixels": max_pixels, "side": side}
        self._idle: asyncio.LifoQueue[asyncio.subprocess.Process | None] = asyncio.LifoQueue()
        for _ in range(count):
            self._idle.put_nowait(None)
        self._started: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for process in self._started:
            await _end(process)

    async def decode(self, data: bytes) -> Picture:
        """Decode a picture.

        Raises:
            FetchError: if it is none, too large, or kills or outlasts the decoder.
        """
        process = await self._idle.get()
        try:
            if process is None:
                process = await self._start()
            async with asyncio.timeout(SECONDS):
                answer, png = await self._ask(process, data)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            how = "no answer in time" if isinstance(error, TimeoutError) else "the decoder dead"
            if process is not None:
                await _end(process)
            process = None
            raise FetchError(f"picture: found {how}, need one that decodes", "bomb") from error
        except asyncio.CancelledError:
            if process is not None:
                await _end(process)
            process = None
            raise
        finally:
            self._idle.put_nowait(process)
        if "error" in answer:
            raise FetchError(answer["error"], answer["status"])
        return Picture(
            png, hashlib.sha256(data).hexdigest(), answer["width"], answer["height"], int(answer["phash"], 16)
        )

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._started.append(process)
        return process

    async def _ask(self, process: asyncio.subprocess.Process, data: bytes) -> tuple[dict[str, Any], bytes]:
        assert process.stdin is not None
        assert process.stdout is not None
        head = json.dumps(self._request).encode()
        process.stdin.write(FRAME.pack(len(head), len(data)) + head + data)
        await process.stdin.drain()
        sizes = FRAME.unpack(await process.stdout.readexactly(FRAME.size))
        answer = json.loads(await process.stdout.readexactly(sizes[0]))
        return answer, await process.stdout.readexactly(sizes[1])


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    with suppress(OSError):
        await process.communicate()  # closes its pipes, too


def perceptual_hash(image: Image.Image) -> int:
    """64 bits: whether each of the lowest frequencies of the grey picture is above their median (a cosine transform)."""
    grey = np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.LANCZOS), np.float64)
    place = np.arange(SIZE)
    basis = np.cos(np.pi / SIZE * np.outer(place[:BITS], place + 0.5))
    low = (basis @ grey @ basis.T).ravel()
    low[0] = 0  # mean brightness: not what a picture shows
    # Whole numbers: the sign of a flat picture's rounding errors is no content.
    bits = np.round(low) > np.median(np.round(low))
    return int("".join("1" if bit else "0" for bit in bits), 2)


def fit(image: Image.Image, side: int) -> Image.Image:
    """Scale a picture down until its shorter side is `side`; a smaller one is left alone."""
    short = min(image.size)
    if short <= side:
        return image
    size = (max(1, round(image.width * side / short)), max(1, round(image.height * side / short)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)


def answer(request: dict[str, int], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Decode one picture: the answer's JSON and the PNG."""
    try:
        image = images.decode(data, "picture", request["max_pixels"])
    except ImageError as error:
        text = str(error)
        return {"error": text, "status": "bomb" if "bomb" in text else "not_image"}, b""
    except MemoryError:
        return {
            "error": f"picture: found one that needs more than {MEMORY:,} bytes, need a smaller one",
            "status": "bomb",
        }, b""
    kept = fit(image, request["side"])
    return {"width": kept.width, "height": kept.height, "phash": f"{perceptual_hash(kept):016x}"}, images.encode(
        kept, effort=1
    )


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until there are no more."""
    while len(head := source.read(FRAME.size)) == FRAME.size:
        sizes = FRAME.unpack(head)
        request = json.loads(source.read(sizes[0]))
        found, png = answer(request, source.read(sizes[1]))
        text = json.dumps(found).encode()
        sink.write(FRAME.pack(len(text), len(png)) + text + png)
        sink.flush()


def limit() -> None:
    """Give up what decoding does not need: memory beyond MEMORY, files and dumps."""
    for kind, value in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # a system that does not know the limit
            resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    limit()
    serve(sys.stdin.buffer, sys.stdout.buffer)
