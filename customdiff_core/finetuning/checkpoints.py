"""Step checkpoints: a killed training goes on in the middle and ends at the same weights; a finished one can go on.

A checkpoint is one safetensors file, written whole or not at all, whose name carries its step and its hash.
"""

import logging
import re
from pathlib import Path
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file

from customdiff_core.artifacts import place_atomic, sha256_of

logger = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d{7})-([0-9a-f]{16})\.safetensors")
KEEP = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, torch.Tensor]) -> None:
    """Write the state after `step` steps, and drop all but the newest few up to there; those of a longer run stay."""
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    temporary = folder / f".step-{step:07d}.{uuid4().hex}.tmp"
    place_atomic(
        temporary,
        lambda: save_file(here, temporary),  # from where the tensors lie: a whole UNet's state is not held twice
        lambda: folder / f"step-{step:07d}-{_hash(temporary)}.safetensors",
    )
    reached = [path for found, path in _found(folder) if found <= step]
    for path in reached[KEEP:]:
        path.unlink(missing_ok=True)


def newest_checkpoint(folder: Path, limit: int) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the step and state of the newest whole checkpoint of at most `limit` steps; (0, {}) when there is none."""
    for step, path in _found(folder):
        if step > limit:
            continue
        if _hash(path) == path.stem[-16:]:
            return step, load_file(path)
        logger.warning("checkpoint %s: other content than was written; going back to an earlier one", path)
        path.rename(path.with_suffix(".damaged"))
    return 0, {}


def _hash(path: Path) -> str:
    return sha256_of(path)[:16]


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints, newest first."""
    matches = [(NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)
