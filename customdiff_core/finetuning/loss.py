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


def timestep_weights(scheduler: Schedule, steps: torch.Tensor, gamma: float | None) -> torch.Tensor:
    """Weight of each timestep's loss, (B,): 1, or min-SNR's min(snr, gamma) / snr (Hang et al., arXiv:2303.09556).

    For a network that predicts v, whose loss is snr + 1 times that on the image, the divisor is snr + 1.
    """
    if gamma is None:
        return torch.ones(len(steps), device=steps.device)
    kept = scheduler.alphas_cumprod.to(steps.device)[steps].float()
    snr = kept / (1 - kept)
    divisor = snr + 1 if scheduler.config.prediction_type == "v_prediction" else snr
    return snr.clamp(max=gamma) / divisor


def instance_loss(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Mean squared error inside each view's mask, every view counting by its timestep's weight alone.

    Args:
        prediction: (B, C, h, w).
        target: (B, C, h, w).
        mask: (B, 1, h, w) of 0 and 1, none of them empty.
        weights: (B,).
    """
    error = (prediction - target).square().mean(dim=1, keepdim=True)
    return (weights * (error * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))).mean()


def prior_loss(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Plain mean squared error on the regularization images (prior preservation), weighed by timestep (B,)."""
    return (weights * (prediction - target).square().mean(dim=(1, 2, 3))).mean()
