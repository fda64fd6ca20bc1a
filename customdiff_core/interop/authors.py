"""The authors' two layouts, from their description: `delta.bin` under diffusers' names, `delta*.ckpt` under CompVis'.

Both hold whole weights, not differences. A CompVis file does not name its tokens: they are <new1>, <new2>, ... in its order.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from customdiff_core.errors import DeltaError
from customdiff_core.interop.content import ENCODERS, Base, Parts, rows_of, tensors_of
from customdiff_core.interop.diffusers_format import check_cross_attention
from customdiff_core.interop.ldm_names import UNET, renamed, unet_prefixes

logger = logging.getLogger(__name__)

TOKENS = "modifier_token"
EMBED = "embed"


def is_delta_bin(content: dict[str, Any]) -> bool:
    """Whether a file is the authors' delta.bin."""
    return "unet" in content or TOKENS in content


def is_compvis(content: dict[str, Any]) -> bool:
    """Whether a file is the authors' delta*.ckpt."""
    state = content.get("state_dict")
    if not isinstance(state, dict):
        return False
    return all(name == EMBED or (name.startswith(UNET) and ".attn2." in name) for name in map(str, state))


def read_delta_bin(path: Path, content: dict[str, Any]) -> Parts:
    """Read delta.bin; SDXL's tokens have two vectors."""
    tokens = content.get(TOKENS, {})
    if not isinstance(tokens, dict):
        raise DeltaError(
            f"{path}: found {TOKENS} of type {type(tokens).__name__}, need a dict by token; export it again"
        )
    weights = tensors_of(content.get("unet", {}), f"{path}: unet")
    if beside := sorted(set(map(str, content)) - {"unet", TOKENS}):
        logger.warning("left out: %s: found %s, for which no delta has a place", path, ", ".join(beside))
    return Parts(weights, {str(token): rows_of(value, f"{path}: {token}") for token, value in tokens.items()})


def write_delta_bin(path: Path, parts: Parts) -> list[Path]:
    """Write delta.bin."""
    check_cross_attention(parts, "the authors' delta.bin")
    tokens: dict[str, Any] = {}
    for token, rows in parts.tokens.items():
        vectors = [rows[encoder].clone() for encoder in ENCODERS if encoder in rows]
        tokens[token] = vectors if len(vectors) > 1 else vectors[0]
    torch.save({"unet": dict(parts.weights), TOKENS: tokens}, path)
    return [path]


def read_compvis(path: Path, content: dict[str, Any], base: Base) -> Parts:
    """Read delta*.ckpt; a layer that the base model has not keeps its name, so that what is in the file can be said.

    Raises:
        DeltaError: if it holds more than tensors.
    """
    state = tensors_of(content["state_dict"], str(path))
    pairs = unet_prefixes(base.unet_config)
    theirs = {name: name.removeprefix(UNET) for name in state if name != EMBED}
    weights = {renamed(bare, pairs, back=True) or bare: state[name] for name, bare in theirs.items()}
    embed = state.get(EMBED, torch.empty(0, 0))
    return Parts(weights, {f"<new{number}>": {ENCODERS[0]: row} for number, row in enumerate(embed, 1)})


def write_compvis(path: Path, parts: Parts, base: Base) -> list[Path]:
    """Write delta*.ckpt; its tokens are in the order of the parts.

    Raises:
        DeltaError: for tokens of two text encoders, which it cannot hold.
    """
    check_cross_attention(parts, "the authors' delta.ckpt")
    if any(len(rows) > 1 for rows in parts.tokens.values()):
        raise DeltaError(
            "the authors' delta.ckpt: found tokens of two text encoders, need one; write delta.bin instead"
        )
    pairs = unet_prefixes(base.unet_config)
    state = {f"{UNET}{renamed(name, pairs)}": tensor for name, tensor in parts.weights.items()}
    if parts.tokens:
        state[EMBED] = torch.stack([rows[ENCODERS[0]] for rows in parts.tokens.values()])
    torch.save({"state_dict": state}, path)
    return [path]
