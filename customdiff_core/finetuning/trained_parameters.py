"""Which of the UNet's parameters a method trains, and the one detail of how: the detached first position."""

import torch
from torch import nn

from customdiff_core.finetuning.cross_attention import KEYS_AND_VALUES


def matching_parameters(unet: nn.Module, endings: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Return the parameters whose diffusers names end so, such as "....attn2.to_k.weight"; every name ends with ""."""
    return {name: parameter for name, parameter in unet.named_parameters() if name.endswith(endings)}


def train_parameters(unet: nn.Module, endings: tuple[str, ...], *, detach_bos: bool) -> dict[str, nn.Parameter]:
    """Unfreeze the parameters whose names end so, and return them by name.

    Args:
        unet: all else stays as it is.
        endings: of the names; none trains nothing.
        detach_bos: let no key or value gradient through text position 0, as the released code does: the first token is
            the same for every prompt, and through it a change would reach all of them.
    """
    trained = matching_parameters(unet, endings)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    if detach_bos:
        for name in trained:
            if name.endswith(KEYS_AND_VALUES):
                unet.get_submodule(name.removesuffix(".weight")).register_forward_hook(_detach_first)
    return trained


def _detach_first(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Cut the gradient of position 0 of (B, L, C)."""
    del module, inputs
    return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)
