"""Latents kept as the VAE's mean and log-variance, so that training draws a fresh one each step without the VAE."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from customdiff_core.config import Runtime
from customdiff_core.devices import resolve_device
from customdiff_core.finetuning.components import load_vae
from customdiff_core.profiles import ModelSource
from customdiff_core.progress import Progress

BATCH = 16

Array = npt.NDArray[np.float32]


def to_pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB images of one size to (N, 3, H, W) in [-1, 1]."""
    stacked = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(stacked / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def encode_latents(
    images: Sequence[Image.Image], source: ModelSource, runtime: Runtime, progress: Progress
) -> tuple[Array, Array]:
    """Encode images into the posterior's mean and log-variance: two arrays (N, 4, h, w), float32, not yet scaled."""
    device = resolve_device(runtime.device)
    vae = load_vae(source).to(device)
    means: list[torch.Tensor] = []
    logvars: list[torch.Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            posterior = vae.encode(to_pixels(images[start : start + BATCH]).to(device)).latent_dist
            means.append(posterior.mean.cpu())
            logvars.append(posterior.logvar.cpu())
            progress(min(start + BATCH, len(images)), len(images), "images encoded")
    return torch.cat(means).numpy(), torch.cat(logvars).numpy()


def draw(mean: torch.Tensor, logvar: torch.Tensor, scale: float, generator: torch.Generator) -> torch.Tensor:
    """Draw latents from their posteriors, scaled for the UNet: (B, 4, h, w)."""
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    return (mean + torch.exp(0.5 * logvar) * noise) * scale


def save_latents(path: Path, mean: Array, logvar: Array, mask: Array) -> None:
    """Write a training set's latents and masks."""
    tensors = {"mean": torch.from_numpy(mean), "logvar": torch.from_numpy(logvar), "mask": torch.from_numpy(mask)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def load_latents(path: Path) -> dict[str, torch.Tensor]:
    """Read them back: mean, logvar (N, 4, h, w) and mask (N, 1, h, w)."""
    return load_file(path)
