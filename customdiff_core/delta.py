"""A delta: what one fine-tuning changed, as one safetensors file with its lineage.

Tensors are whole, under their diffusers names, and `modifier_token.<token>.text_encoder` holds each V*.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from customdiff_core.errors import WeightsError
from customdiff_core.finetuning.components import Components
from customdiff_core.finetuning.modifier_token import add_modifier_tokens

FORMAT = "customdiff-delta-1"
TOKEN_PREFIX = "modifier_token."
ENCODER = "text_encoder"


@dataclass(frozen=True)
class Delta:
    """Trained tensors by diffusers name, the modifier tokens' rows (D,), and where they come from."""

    weights: Mapping[str, torch.Tensor]
    tokens: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]


def save(path: Path, delta: Delta) -> None:
    """Write a delta."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in delta.weights.items()}
    tokens = {f"{TOKEN_PREFIX}{token}.{ENCODER}": row.detach().cpu().clone() for token, row in delta.tokens.items()}
    path.write_bytes(_ordered(to_bytes(tensors | tokens, metadata={"format": FORMAT, **delta.metadata})))


def load(path: Path) -> Delta:
    """Read a delta.

    Raises:
        WeightsError: if it is not one, or of a format this version does not know.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: found no readable safetensors ({error}), need a delta; copy it again") from error
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "no format")
        raise WeightsError(
            f"{path}: found {found}, need {FORMAT}; it was written by another program or a newer version"
        )
    tokens = {name: tensor for name, tensor in tensors.items() if name.startswith(TOKEN_PREFIX)}
    return Delta(
        weights={name: tensor for name, tensor in tensors.items() if name not in tokens},
        tokens={name[len(TOKEN_PREFIX) : -len(ENCODER) - 1]: row for name, row in tokens.items()},
        metadata=metadata,
    )


def apply(components: Components, delta: Delta) -> None:
    """Put a delta's weights and tokens into a base model.

    Raises:
        WeightsError: if it belongs to another base model, naming both digests, or its tensors do not fit.
    """
    base = delta.metadata.get("base_digest", "")
    if base != components.digest:
        raise WeightsError(
            f"delta: found one trained on base model {base[:12]}, need {components.digest[:12]}; load it on its own base"
        )
    parameters = dict(components.unet.named_parameters())
    with torch.no_grad():
        for name, tensor in delta.weights.items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise WeightsError(
                    f"delta: found {name} {tuple(tensor.shape)}, which does not fit the base model's UNet"
                )
            parameters[name].copy_(tensor)
        modified = add_modifier_tokens(components, list(delta.tokens), _initializers(delta))
        modified.rows.copy_(torch.stack(list(delta.tokens.values())))
    modified.requires_grad_(False)


def _ordered(data: bytes) -> bytes:
    """Sort the header of a safetensors file: the library writes metadata in another order each time, and the digest with it."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text.ljust(-(-len(text) // 8) * 8)
    return len(padded).to_bytes(8, "little") + padded + data[8 + size :]


def _initializers(delta: Delta) -> list[str]:
    return json.loads(delta.metadata["initializer_tokens"])
