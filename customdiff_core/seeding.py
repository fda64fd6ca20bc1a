"""Randomness without state: every draw is named by what it is for, so that a resumed run repeats it exactly."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(*parts: str | int) -> int:
    """Map a name such as ("noise", seed, step) to 63 bits, the same on every machine and Python."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_rng(*parts: str | int) -> np.random.Generator:
    """Return a NumPy generator for this name."""
    return np.random.default_rng(seed_of(*parts))


def torch_generator(*parts: str | int) -> "torch.Generator":
    """Return a CPU torch generator for this name; draw on the CPU, then move, so that devices agree."""
    import torch

    return torch.Generator("cpu").manual_seed(seed_of(*parts))
