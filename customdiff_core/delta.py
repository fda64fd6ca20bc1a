"""A delta: what one fine-tuning or merge changed, as one safetensors file with its lineage.

A weight is kept whole under its diffusers name, or as the two thin factors of its change: `<name>.left` (D_out, r) and
`<name>.right` (r, D_in), with W = W0 + left right. `modifier_token.<token>.<encoder>` holds each V*.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes

from customdiff_core import lineage as lineages
from customdiff_core.errors import DeltaError
from customdiff_core.finetuning.components import Components, TextEncoder
from customdiff_core.finetuning.modifier_token import add_modifier_tokens, embedding_table
from customdiff_core.lineage import Lineage, read_lineage, to_metadata

FILE, TOKEN_PREFIX = lineages.FILE, lineages.TOKEN_PREFIX
LEFT, RIGHT = ".left", ".right"
ROWS = 128  # of a weight at a time: 128 x 768 in float64 stay in the processor's cache
LONGEST_TYPE = "F8_E4M3"  # as safetensors spells types

Factors = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Delta:
    """Trained tensors by diffusers name, factored changes likewise, each token's row (D,) by text encoder, and lineage."""

    weights: Mapping[str, torch.Tensor]
    tokens: Mapping[str, Mapping[str, torch.Tensor]]
    lineage: Lineage
    factors: Mapping[str, Factors] = field(default_factory=dict[str, Factors])

    @property
    def names(self) -> set[str]:
        """The UNet's parameters that it changes."""
        return {*self.weights, *self.factors}

    def change(self, name: str, features: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
        """What it adds to a layer's outputs on text features: (n, D_out), float64.

        A factored change is never multiplied out, and of a whole weight no difference as large as itself is made: float64
        has the digits for that of the outputs.

        Args:
            name: of the weight.
            features: (n, D_in), float64.
            plain: (n, D_out) the base model's outputs on them.
        """
        if name in self.factors:
            left, right = (factor.double() for factor in self.factors[name])
            return features @ right.T @ left.T
        return outputs(features, self.weights[name]) - plain

    def whole(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """A changed weight, in the base's type."""
        if name in self.weights:
            return self.weights[name].to(base.dtype)
        left, right = self.factors[name]
        return torch.addmm(base, left.to(base), right.to(base))


def outputs(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return a layer's outputs (n, D_out) on features (n, D_in), float64, without the whole weight in float64."""
    found = features.new_empty(len(features), len(weight))
    for rows in rows_of(weight):
        found[:, rows] = features @ weight[rows].double().T
    return found


def rows_of(weight: torch.Tensor) -> Iterator[slice]:
    """The rows of a weight, a few at a time."""
    return (slice(start, start + ROWS) for start in range(0, len(weight), ROWS))


def save(path: Path, delta: Delta) -> None:
    """Write a delta; equal deltas give equal files."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in _named(delta).items()}
    path.write_bytes(_ordered(to_bytes(kept, metadata=to_metadata(delta.lineage))))


def size(delta: Delta) -> int:
    """The bytes that a delta's file has at most: a few a tensor fewer, where its type and its place are shorter to write.

    It reads shapes and types alone, so that meta tensors do.
    """
    tensors = _named(delta)
    data = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    header: dict[str, Any] = {
        name: {"dtype": LONGEST_TYPE, "shape": list(tensor.shape), "data_offsets": [data, data]}
        for name, tensor in tensors.items()
    }
    return len(_header(header | {"__metadata__": to_metadata(delta.lineage)})) + data


def load(path: Path) -> Delta:
    """Read a delta.

    Raises:
        DeltaError: if it is not one, of a format this version does not know, or holds what is no number.
    """
    lineage = read_lineage(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_finite(tensors.items(), str(path))
    tokens: dict[str, dict[str, torch.Tensor]] = {}
    for name in [name for name in tensors if name.startswith(TOKEN_PREFIX)]:
        token, found, encoder = name[len(TOKEN_PREFIX) :].rpartition(".")
        if not found:
            raise DeltaError(f"{path}: found {name}, need {TOKEN_PREFIX}<token>.<text encoder>; copy it again")
        tokens.setdefault(token, {})[encoder] = tensors.pop(name)
    factors = {name: _factors(name, tensors, path) for name in _factored(tensors)}
    for name in tensors:
        if name.removesuffix(RIGHT) not in factors and name.endswith(RIGHT):
            raise DeltaError(f"{path}: found {name} alone, need both factors of the layer; copy it again")
        if name in factors:
            raise DeltaError(f"{path}: found {name} whole and in factors, need one of them; copy it again")
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith((LEFT, RIGHT))}
    return Delta(weights, tokens, lineage, factors)


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], what: str) -> None:
    """Check that a file holds numbers.

    Raises:
        DeltaError: naming the first tensor with NaN or infinity.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise DeltaError(f"{what}: found NaN or infinity in {name}, need numbers; train it again or copy it again")


def check_base(delta: Delta, digest: str) -> None:
    """Check that a delta belongs to a base model.

    Raises:
        DeltaError: naming both digests.
    """
    base = delta.lineage.base_digest
    if base != digest:
        raise DeltaError(
            f"delta: found one trained on base model {base[:12] or 'unknown'}, need {digest[:12]}; load it on its own base"
        )


def check_shapes(delta: Delta, base: Mapping[str, torch.Tensor]) -> None:
    """Check that a delta's tensors fit a UNet's.

    Raises:
        DeltaError: naming the first that does not.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in delta.weights.items()}
    shapes |= {name: (left.shape[0], right.shape[1]) for name, (left, right) in delta.factors.items()}
    for name, shape in shapes.items():
        if name not in base or tuple(base[name].shape) != shape:
            need = f"{tuple(base[name].shape)}" if name in base else "no such layer"
            raise DeltaError(
                f"delta: found {name} {shape}, which does not fit the base model's UNet, need {need}; load it on its own base"
            )


def check_tokens(delta: Delta, widths: Mapping[str, int]) -> None:
    """Check that a delta's tokens have a row for each text encoder, as wide as its embedding, and no other.

    Raises:
        DeltaError: naming the first that does not.
    """
    need = {encoder: (width,) for encoder, width in widths.items()}
    for token, rows in delta.tokens.items():
        found = {encoder: tuple(row.shape) for encoder, row in rows.items()}
        for encoder in (*need, *found):
            if found.get(encoder) != need.get(encoder):
                has = f"a row of {found[encoder]}" if encoder in found else "no row"
                raise DeltaError(
                    f"delta: found {token} with {has} for {encoder}, need {need.get(encoder, 'none')}; load it on its own base"
                )


def apply(components: Components, delta: Delta) -> None:
    """Put a delta's weights and tokens into a base model; a factored change is added in place, never multiplied out.

    Raises:
        DeltaError: if it belongs to another base model, naming both digests, or its tensors do not fit.
    """
    check_base(delta, components.digest)
    parameters: dict[str, torch.Tensor] = dict(components.unet.named_parameters())
    check_shapes(delta, parameters)
    with torch.no_grad():
        for name, tensor in delta.weights.items():
            parameters[name].copy_(tensor)
        for name, (left, right) in delta.factors.items():
            parameters[name].addmm_(left.to(parameters[name]), right.to(parameters[name]))
    add_tokens(components.encoders, delta)


def add_tokens(encoders: Iterable[TextEncoder], delta: Delta) -> None:
    """Teach text encoders a delta's tokens, frozen.

    Raises:
        DeltaError: if a token's rows do not fit.
    """
    taught = tuple(encoders)
    check_tokens(delta, {encoder.name: int(encoder.network.config.hidden_size) for encoder in taught})
    for encoder in taught if delta.tokens else ():
        start = [encoder.tokenizer.eos_token] * len(delta.tokens)  # overwritten at once
        modified = add_modifier_tokens(encoder, list(delta.tokens), [str(word) for word in start])
        with torch.no_grad():
            modified.rows.copy_(torch.stack([rows[encoder.name] for rows in delta.tokens.values()]))
        embedding_table(encoder).requires_grad_(False)


def _named(delta: Delta) -> dict[str, torch.Tensor]:
    """A delta's tensors under their names in the file."""
    tensors: dict[str, torch.Tensor] = dict(delta.weights)
    for name, (left, right) in delta.factors.items():
        tensors |= {name + LEFT: left, name + RIGHT: right}
    for token, rows in delta.tokens.items():
        tensors |= {f"{TOKEN_PREFIX}{token}.{encoder}": row.clone() for encoder, row in rows.items()}
    return tensors


def _factored(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    return [name.removesuffix(LEFT) for name in tensors if name.endswith(LEFT)]


def _factors(name: str, tensors: Mapping[str, torch.Tensor], path: Path) -> Factors:
    left, right = tensors[name + LEFT], tensors.get(name + RIGHT)
    if right is None or left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        found = "nothing" if right is None else f"{tuple(right.shape)}"
        raise DeltaError(
            f"{path}: found {name}{RIGHT} {found}, need (r, D_in) beside {tuple(left.shape)}; copy it again"
        )
    return left, right


def _ordered(data: bytes) -> bytes:
    """Sort the header of a safetensors file: the library writes metadata in another order each time, and the digest with it."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    return _header(header) + data[8 + length :]


def _header(content: Mapping[str, Any]) -> bytes:
    """What a safetensors file starts with: eight bytes of length, and JSON that ends at a multiple of eight."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text.ljust(-(-len(text) // 8) * 8)
    return len(padded).to_bytes(8, "little") + padded
