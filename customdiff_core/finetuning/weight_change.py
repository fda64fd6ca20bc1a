"""How far each weight moved: the paper's figure 3, from which it concludes that cross-attention is what to train."""

from collections.abc import Mapping

import torch

from customdiff_core.delta import Delta
from customdiff_core.tables import Row


def layer_kind(name: str) -> str:
    """Sort a parameter by its diffusers name, as figure 3 does."""
    return "cross-attention" if ".attn2." in name else "self-attention" if ".attn1." in name else "other"


def weight_changes(delta: Delta, base: Mapping[str, torch.Tensor]) -> list[Row]:
    """Relative change of every trained weight.

    Returns:
        One row a weight that is not zero in the base model: layer, kind, and change = ||W - W0|| / ||W0||.
    """
    return [
        {"layer": name, "kind": layer_kind(name), "change": relative_change(delta.whole(name, base[name]), base[name])}
        for name in sorted(delta.names)
        if base[name].any()
    ]


def relative_change(tensor: torch.Tensor, base: torch.Tensor) -> float:
    """||W - W0|| / ||W0|| of a base weight that is not zero."""
    return float((tensor.double() - base.double()).norm() / base.double().norm())
