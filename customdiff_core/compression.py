"""Compression: the change of each matrix as two thin factors, by singular value decomposition (section 3.2's end).

W - W0 = U S Vᵀ  ~  (U_r S_r^1/2) (S_r^1/2 V_rᵀ)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from customdiff_core import delta as deltas
from customdiff_core import stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import CompressConfig
from customdiff_core.delta import Delta, Factors
from customdiff_core.errors import ConfigError, DeltaError
from customdiff_core.finetuning.components import load_unet_weights
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.weights import model_digest


@dataclass(frozen=True)
class Decomposition:
    """U (D_out, k), the singular values (k,) and Vᵀ (k, D_in) of one layer's change."""

    u: Tensor
    values: Tensor
    vt: Tensor

    def rank_of(self, energy: float) -> int:
        """How many leading singular values make up this fraction of their sum; at least 1."""
        if not self.values.any():
            return 1
        shares = self.values.cumsum(0) / self.values.sum()
        return min(len(shares), 1 + int((shares < energy - 1e-12).sum()))

    def factors(self, rank: int) -> Factors:
        """The two thin factors, each with the square root of the singular values."""
        roots = self.values[:rank].sqrt()
        return (self.u[:, :rank] * roots).float(), (roots[:, None] * self.vt[:rank]).float()

    def shapes(self, rank: int) -> Factors:
        """The two thin factors without their values."""
        return torch.empty(len(self.u), rank, device="meta"), torch.empty(rank, self.vt.shape[1], device="meta")

    def error(self, rank: int) -> float:
        """||change - factors|| / ||change||, by the values left out."""
        return float(self.values[rank:].norm() / self.values.norm().clamp(min=torch.finfo(self.values.dtype).tiny))


def compress(
    delta: Artifact, profile: Profile, config: CompressConfig, *, store: Store, progress: Progress = silent
) -> Artifact:
    """Factor a delta's matrices; what is no matrix, and the tokens, stay whole.

    Returns:
        A `delta` artifact: delta.safetensors and compression.parquet (a row a layer: rank, energy, relative error).

    Raises:
        ConfigError: unless exactly one of energy, rank and megabytes is stated; DeltaError: if nothing fits the size, no
            matrix was changed, or the delta belongs to another base model.
    """

    def produce(folder: Path) -> int:
        whole = deltas.load(store.path(delta) / deltas.FILE)
        deltas.check_base(whole, model_digest(profile.model))
        if not whole.names:
            raise DeltaError(
                f"compression: found no changed matrix ({whole.lineage.method}), need one; a token alone is small already"
            )
        base = load_unet_weights(profile.model, tuple(whole.names))
        lineage = whole.lineage.model_copy(update={"inputs": {"delta": delta.sha256}})
        made, report = compressed(replace(whole, lineage=lineage), base, config, progress)
        deltas.save(folder / deltas.FILE, made)
        return tables.write(folder / "compression.parquet", report)

    return store.make(stages.compress(delta, profile, config, store), produce)


def compressed(
    delta: Delta, base: Mapping[str, Tensor], config: CompressConfig, progress: Progress = silent
) -> tuple[Delta, list[tables.Row]]:
    """Factor a delta's matrices; returns it and a report row a layer.

    Raises:
        ConfigError: unless exactly one way is stated; DeltaError: if nothing fits the size.
    """
    stated = [name for name, value in config.model_dump().items() if value is not None]
    if len(stated) != 1:
        raise ConfigError(
            f"compression: found {', '.join(stated) or 'none'} stated, need one of energy, rank, megabytes; leave the others out"
        )
    parts: dict[str, Decomposition] = {}
    names = sorted(name for name in delta.names if base[name].ndim == 2)
    for number, name in enumerate(names, 1):
        parts[name] = decompose(delta, name, base[name])
        progress(number, len(names), "layers decomposed")
    kept = {name: tensor for name, tensor in delta.weights.items() if name not in parts}
    energy = (
        config.energy
        if config.megabytes is None
        else _energy_for(config.megabytes, replace(delta, weights=kept), parts)
    )
    ranks = {
        name: min(config.rank, len(one.values)) if config.rank else one.rank_of(energy or 0)
        for name, one in parts.items()
    }
    report: list[tables.Row] = [
        {
            "layer": name,
            "rank": ranks[name],
            "of": len(one.values),
            "energy": float(one.values[: ranks[name]].sum() / one.values.sum()) if one.values.sum() else 1.0,
            "relative_error": one.error(ranks[name]),
        }
        for name, one in parts.items()
    ]
    return replace(delta, weights=kept, factors={name: one.factors(ranks[name]) for name, one in parts.items()}), report


def decompose(delta: Delta, name: str, base: Tensor) -> Decomposition:
    """Decompose a layer's change, in float64; one that is factored already without multiplying it out."""
    if name in delta.factors:
        left, right = (factor.double() for factor in delta.factors[name])
        q_left, r_left = torch.linalg.qr(left)
        q_right, r_right = torch.linalg.qr(right.T)
        u, values, vt = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
        return Decomposition(q_left @ u, values, vt @ q_right.T)
    change = delta.weights[name].double() - base.double()
    return Decomposition(*torch.linalg.svd(change, full_matrices=False))


def _energy_for(megabytes: float, kept: Delta, parts: Mapping[str, Decomposition]) -> float:
    """The largest energy fraction, to a ten-thousandth, whose file is no larger than asked.

    Args:
        megabytes: of the file, 1e6 bytes each.
        kept: the delta with those weights alone that stay whole.
        parts: the others.
    """

    def size(energy: float) -> int:
        factors = {name: one.shapes(one.rank_of(energy)) for name, one in parts.items()}
        return deltas.size(replace(kept, factors=factors))

    low, high = 0, 10_000
    if size(0.0) > megabytes * 1e6:
        raise DeltaError(
            f"compression: found {size(0.0) / 1e6:.2f} MB with one singular value a layer, need at most {megabytes:g}; ask for more"
        )
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle / 10_000) <= megabytes * 1e6 else (low, middle - 1)
    return low / 10_000
