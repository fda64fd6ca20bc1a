"""The core's tests are offline, and write concept folders of their own."""

import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from customdiff_core.augmentation import augment
from customdiff_core.config import AugmentConfig
from customdiff_core.finetuning.components import Components, load_components
from customdiff_core.finetuning.finetune import finetune
from customdiff_core.profiles import Profile

MakeConcept = Callable[..., Path]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core test that reaches for the network fails instead of waiting for it."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"network: found a connection to {address}, need none in a test of the core")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def noise_png() -> bytes:
    """A picture that does not compress, so that half of its file is half of its pixels."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def make_concept(tmp_path: Path, noise_png: bytes) -> MakeConcept:
    """Write a concept folder that is right but for what the test changes; None leaves a field out."""

    def make(name: str = "mug", pictures: int = 2, **fields: Any) -> Path:
        folder = tmp_path / "concepts" / name
        (folder / "images").mkdir(parents=True)
        for number in range(pictures):
            (folder / "images" / f"{number}.png").write_bytes(noise_png)
        (folder / "prompts.txt").write_text("# prompts\n\na {} on a table\nclose up {}\n")
        spec = {
            "name": name,
            "category": "cup",
            "modifier_token": f"<my-{name}>",
            "class_prompt": "photo of a cup",
            "prompts": "prompts.txt",
        } | fields
        kept = {key: value for key, value in spec.items() if value is not None}
        (folder / "concept.yaml").write_text(yaml.safe_dump(kept))
        return folder

    return make


@pytest.fixture
def components(openmoji: Profile) -> Components:
    """The embedded base model, freshly loaded: a test may change it."""
    return load_components(openmoji.model)


@pytest.fixture(scope="session")
def dog_delta(chain) -> Artifact:
    """A second concept, taught in as few steps as the chain's."""
    dog = concepts.load("dog")
    views = AugmentConfig(resolution=64, views=6)
    training_set = augment(dog, chain.regularization, chain.profile, views, store=chain.store)
    return finetune((dog,), (training_set,), chain.profile, chain.finetune_config, store=chain.store)


@pytest.fixture
def empty_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, dict[str, bytes]], None]:
    """A local cache of the hub with nothing in it, and no leave to fetch; called, it gets what a download leaves."""
    from huggingface_hub import constants

    hub = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.delenv("CUSTOMDIFF_ALLOW_DOWNLOAD", raising=False)

    def keep(repository: str, files: dict[str, bytes]) -> None:
        folder = hub / f"models--{repository.replace('/', '--')}"
        left = {"refs/main": b"revision"} | {f"snapshots/revision/{name}": data for name, data in files.items()}
        for name, data in left.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    return keep
