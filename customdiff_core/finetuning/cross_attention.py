"""What Custom Diffusion trains in the UNet: keys and values of every cross-attention layer (section 3.1)."""

from typing import cast

import torch
from torch import nn

SUFFIXES = ("attn2.to_k.weight", "attn2.to_v.weight")


def key_value_projections(unet: nn.Module) -> dict[str, nn.Linear]:
    """Return the K and V projections by their parameters' diffusers names, such as "....attn2.to_k.weight"."""
    return {
        f"{name}.weight": module
        for name, module in unet.named_modules()
        if f"{name}.weight".endswith(SUFFIXES) and isinstance(module, nn.Linear)
    }


def train_keys_and_values(unet: nn.Module, *, detach_bos: bool) -> dict[str, nn.Parameter]:
    """Unfreeze the K and V weights, and return them by name.

    Args:
        unet: all else stays as it is.
        detach_bos: let no gradient through text position 0, as the released code does: the first token is the same for
            every prompt, and through it a change would reach all of them.
    """
    projections = key_value_projections(unet)
    for module in projections.values():
        module.requires_grad_(True)
        if detach_bos:
            module.register_forward_hook(_detach_first)
    return {name: cast(nn.Parameter, module.weight) for name, module in projections.items()}


def _detach_first(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Cut the gradient of position 0 of (B, L, C)."""
    del module, inputs
    return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)
