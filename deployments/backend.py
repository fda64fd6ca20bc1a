"""A real `clip-retrieval back` on an index folder, offline: for the bench and the tests.

It insists on loading some CLIP, though this project sends it vectors and never text: here a tiny one with random weights.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from customdiff_core.errors import ServiceError
from customdiff_core.settings import Settings

START_SECONDS = 300.0
# What a backend for others is started with too: memory-mapped index, no models that it would download.
OPTIONS = (
    *("--enable_mclip_option", "False"),
    *("--provide_aesthetic_embeddings", "False"),
    *("--use_jit", "False"),
    *("--enable_faiss_memory_mapping", "True"),
)


@contextmanager
def running(
    index: Path, folder: Path, *options: str, port: str | None = None
) -> Generator[tuple[str, subprocess.Popen[bytes]]]:
    """Run the backend; yield its address and its process.

    Args:
        index: the index folder that it serves, under the name "main".
        folder: for its files and log.
        options: further ones of `clip-retrieval back`.
        port: where it listens; any free one by default.

    Raises:
        ServiceError: if it does not come up, with its last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "indices.json").write_text(json.dumps({"main": str(index)}))
    port = port or free_port()
    command = [
        Path(sys.executable).parent / "clip-retrieval",
        "back",
        "--port",
        port,
        "--indices-paths",
        folder / "indices.json",
    ]
    log = folder / "backend.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command), "--clip_model", f"hf_clip:{tiny_clip(folder / 'clip')}", *OPTIONS, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"},
        )
        try:
            _wait(f"http://127.0.0.1:{port}", process, log)
            yield f"http://127.0.0.1:{port}", process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tiny_clip(folder: Path) -> Path:
    """Write a CLIP of a few thousand random weights, as transformers reads it."""
    from transformers import CLIPConfig, CLIPModel

    layer = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(
        text_config=layer, vision_config=layer | {"image_size": 224, "patch_size": 112}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer = Settings().data / "models" / "openmoji" / "openmoji-sd" / "tokenizer"
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}))
    return folder


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/indices-list", timeout=2).is_success:
                return
        time.sleep(0.3)
    words = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
    raise ServiceError(f"clip-retrieval back: found no answer at {url} ({words[0][:200]}), need one; read {log}")


def free_port() -> str:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])
