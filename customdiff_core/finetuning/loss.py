"""The training objective: pure functions of tensors."""

import torch

from customdiff_core.errors import ConfigError
from customdiff_core.finetuning.components import Schedule


def target_of(scheduler: Schedule, latents: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """What the network must predict: the noise, or the velocity v = sqrt(a) noise - sqrt(1 - a) latents.

    Raises:
        ConfigError: for a schedule that predicts anything else.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, steps)
    raise ConfigError(
        f"noise schedule: found prediction_type {kind!r}, need epsilon or v_prediction; use another model"
    )


def instance_loss(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error inside each view's mask, every view counting alike.

    Args:
        prediction: (B, C, h, w).
        target: (B, C, h, w).
        mask: (B, 1, h, w) of 0 and 1, none of them empty.
    """
    error = (prediction - target).square().mean(dim=1, keepdim=True)
    return ((error * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))).mean()


def prior_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Plain mean squared error on the regularization images (prior preservation)."""
    return (prediction - target).square().mean()
