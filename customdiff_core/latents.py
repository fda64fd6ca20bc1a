"""Latents kept as the VAE's mean and log-variance, so that training draws a fresh one each step without the VAE."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from customdiff_core.config import Runtime
from customdiff_core.devices import needing_memory, resolve_device
from customdiff_core.finetuning.components import load_vae
from customdiff_core.profiles import ModelSource
from customdiff_core.progress import Progress
from customdiff_core.training_set import Size

BATCH = 16  # pictures at a time
PIXELS = BATCH * 512**2  # of a batch, at most: a VAE's activations are some 10 GiB then

NAMES = ("mean", "logvar", "mask")
Array = npt.NDArray[np.float32]


class Latents(NamedTuple):
    """One picture's: the posterior's mean and log-variance (C, h, w), and where its loss counts (1, h, w)."""

    mean: torch.Tensor
    logvar: torch.Tensor
    mask: torch.Tensor


def to_pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB images of one size to (N, 3, H, W) in [-1, 1]."""
    stacked = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(stacked / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def batch_of(width: int, height: int) -> int:
    """How many pictures of this size the VAE reads at a time."""
    return max(1, min(BATCH, PIXELS // (width * height)))


@needing_memory(
    "encoding pictures",
    "lower augment.resolution (customdiff train: --set augment.resolution=384), or take another device",
)
def encode_latents(
    images: Sequence[Image.Image], source: ModelSource, runtime: Runtime, progress: Progress
) -> tuple[Array, Array]:
    """Encode images into the posterior's mean and log-variance: two arrays (N, C, h, w), float32, not yet scaled."""
    device = resolve_device(runtime.device)
    vae = load_vae(source).to(device)
    means: list[torch.Tensor] = []
    logvars: list[torch.Tensor] = []
    with torch.inference_mode():
        batch = batch_of(*images[0].size)
        for start in range(0, len(images), batch):
            posterior = vae.encode(to_pixels(images[start : start + batch]).to(device)).latent_dist
            means.append(posterior.mean.cpu())
            logvars.append(posterior.logvar.cpu())
            progress(min(start + batch, len(images)), len(images), "images encoded")
    return torch.cat(means).numpy(), torch.cat(logvars).numpy()


def draw(mean: torch.Tensor, logvar: torch.Tensor, scale: float, generator: torch.Generator) -> torch.Tensor:
    """Draw latents from their posteriors, scaled for the UNet: (B, 4, h, w)."""
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    return (mean + torch.exp(0.5 * logvar) * noise) * scale


def save_latents(path: Path, groups: Mapping[Size, tuple[Array, Array, Array]]) -> None:
    """Write a training set's mean, logvar (N, C, h, w) and mask (N, 1, h, w), by width and height of the pictures."""
    save_file(
        {
            f"{name}.{width}x{height}": torch.from_numpy(array).contiguous()
            for (width, height), arrays in groups.items()
            for name, array in zip(NAMES, arrays, strict=True)
        },
        path,
    )


def load_latents(path: Path, rows: Iterable[tuple[int, int, int]]) -> list[Latents]:
    """Read rows of a training set, each given by width and height of its picture and its `latent_row`."""
    tensors = load_file(path)
    return [Latents(*(tensors[f"{name}.{width}x{height}"][row] for name in NAMES)) for width, height, row in rows]
