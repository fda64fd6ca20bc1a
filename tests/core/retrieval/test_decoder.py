"""Decoding in a process that may die."""

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customdiff_core import images
from customdiff_core.errors import FetchError
from customdiff_core.retrieval import decoder
from customdiff_core.retrieval.decoder import Decoders, fit, perceptual_hash
from deployments.web import picture


def test_a_picture_comes_back_as_it_is_kept():
    async def run():
        async with Decoders(1, 10**7, 100) as decoders:
            return await decoders.decode(picture(5))

    found = asyncio.run(run())
    expected = fit(images.decode(picture(5), "x"), 100)
    assert np.array_equal(images.open_trusted(found.png), expected)
    assert (found.sha256, found.phash) == (images.digest(picture(5)), perceptual_hash(expected))


def test_a_decoder_that_dies_costs_its_picture_and_no_other():
    async def run():
        async with Decoders(1, 10**7, 64) as decoders:
            await decoders.decode(picture(1))
            os.kill(decoders._started[0].pid, signal.SIGKILL)
            with pytest.raises(FetchError, match="found the decoder dead, need one that decodes"):
                await decoders.decode(picture(2))
            return await decoders.decode(picture(3)), len(decoders._started)

    found, started = asyncio.run(run())
    assert (found.width, started) == (64, 2)


def test_a_decoder_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoder, "SECONDS", 1.0)

    async def run():
        async with Decoders(1, 10**7, 64) as decoders:
            process = await decoders._start()
            os.kill(process.pid, signal.SIGSTOP)
            decoders._idle.get_nowait()
            decoders._idle.put_nowait(process)
            with pytest.raises(FetchError, match="found no answer in time"):
                await decoders.decode(picture(1))
            monkeypatch.setattr(decoder, "SECONDS", 60.0)
            return await decoders.decode(picture(1))

    assert asyncio.run(run()).width == 64


def test_it_has_no_environment_and_little_memory():
    """What a picture could get hold of, were it to run a program there."""

    async def run():
        async with Decoders(1, 10**7, 64) as decoders:
            process = await decoders._start()
            await decoders._ask(process, picture(1))
            return [Path(f"/proc/{process.pid}/{name}").read_text() for name in ("environ", "limits")]

    environment, limits = asyncio.run(run())
    assert {line.split("=")[0] for line in environment.split("\0") if line} <= {
        "PYTHONPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LC_CTYPE",
    }  # fmt: skip
    lines = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()}
    assert lines["Max address space"] == str(decoder.MEMORY)
    assert lines["Max file size"] == "0"


def test_copies_share_a_hash_and_others_do_not():
    one = images.decode(picture(1), "x")
    copy = one.resize((120, 120)).resize((256, 256))
    other = images.decode(picture(2), "x")
    assert (perceptual_hash(one) ^ perceptual_hash(copy)).bit_count() <= 4
    assert (perceptual_hash(one) ^ perceptual_hash(other)).bit_count() > 12
    assert perceptual_hash(Image.new("RGB", (64, 64), "red")) == perceptual_hash(Image.new("RGB", (64, 64), "blue"))


def test_the_profiles_thresholds_find_copies_and_leave_drawings_alone(chain, openmoji):
    """Of a corpus of drawings, few pairs are taken for one picture; of JPEG copies, nearly all."""
    import io

    from customdiff_core.retrieval.encoder import Encoder

    def jpeg(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        return images.decode(buffer.getvalue(), "copy")

    paths = sorted((chain.store.path(chain.index) / "images").rglob("*.png"))[:300]
    drawings = [images.open_trusted(path.read_bytes()) for path in paths]
    copies = [jpeg(image) for image in drawings]
    encoder, config = Encoder(openmoji.retrieval_encoder, "cpu"), openmoji.retrieve
    near = encoder.images(drawings) @ encoder.images([*drawings, *copies]).T >= config.near_similarity
    hashes = [perceptual_hash(image) for image in [*drawings, *copies]]
    close = np.array([[(a ^ b).bit_count() <= config.near_hash for b in hashes] for a in hashes[:300]])
    same = near & close
    assert np.diag(same[:, 300:]).mean() > 0.85
    confused = same[:, :300].sum() - 300
    assert confused / (300 * 299) < 0.001
