"""VAE: pictures to latents a quarter as wide and back (diffusers' AutoencoderKL)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import Runtime
from customdiff_core.pretraining import corpus, stages
from customdiff_core.pretraining.clip import Pictures, as_tensor
from customdiff_core.pretraining.config import VaeConfig
from customdiff_core.pretraining.corpus import Corpus
from customdiff_core.pretraining.folders import forget_paths
from customdiff_core.pretraining.loop import pretrain
from customdiff_core.progress import Progress, silent
from customdiff_core.seeding import numpy_rng, torch_generator

MEASURED = 512  # scenes of which the latents' scale and the fidelity are taken
BATCH = 64


def vae(
    scenes: Artifact,
    config: VaeConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
    start: Artifact | None = None,
) -> Artifact:
    """Train the autoencoder from nothing, or further: the whole, or the decoder alone.

    Returns:
        A `vae` artifact: a diffusers folder, whose scaling factor makes latents of unit variance, and history.parquet.
    """
    recipe = stages.vae(scenes, config, start)

    def produce(folder: Path) -> int:
        seen = corpus.load(store, scenes, "training")
        torch.manual_seed(config.seed)
        model = load(store, start) if start else build(config, seen.pictures.shape[1])
        loss = Reconstruction(model, seen, config)
        scratch = store.scratch(recipe.kind, recipe.key)
        made, history = pretrain(loss, loss.of_step, config, scratch=scratch, device=runtime.device, progress=progress)
        model = made.model
        if not config.encoder_frozen:
            model.register_to_config(scaling_factor=_scale(model, seen))
        model.save_pretrained(folder)
        forget_paths(folder)
        tables.write(folder / "history.parquet", history)
        return config.steps

    return store.make(recipe, produce, volatile=("history.parquet",))


class Reconstruction(nn.Module):
    """How far a picture comes back: absolute and squared difference, that of neighbours and of colour, and a little KL."""

    def __init__(self, model: Any, seen: Corpus, config: VaeConfig) -> None:
        super().__init__()
        self.model, self.seen, self.config = model, seen, config
        for part in (model.encoder, model.quant_conv) if config.encoder_frozen else ():
            part.requires_grad_(False)

    def of_step(self, step: int) -> Tensor:
        """The loss of a step's own crops."""
        rng = numpy_rng("vae batch", self.config.seed, step)
        size, crop = self.seen.pictures.shape[1], self.config.crop
        rows = np.sort(rng.choice(len(self.seen.pictures), self.config.batch_size, replace=False))
        top, left = (int(rng.integers(0, (size - crop) // 4 + 1)) * 4 for _ in range(2))
        pictures = self.seen.pictures[rows][:, top : top + crop, left : left + crop]
        if rng.random() < 0.5:
            pictures = pictures[:, :, ::-1]
        noise = torch_generator("vae noise", self.config.seed, step)
        return self((2 * as_tensor(pictures) - 1).to(self.model.device), noise)

    def forward(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 3, h, w) of -1..1; the mean over all values."""
        posterior = self.model.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(pictures.device)
        back = self.model.decode(posterior.mean + posterior.std * noise).sample.float()
        difference = back - pictures
        chroma = (difference - difference.mean(dim=1, keepdim=True)).abs().mean()
        edges = (difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()) / 2
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        pixels = difference.abs().mean() + 2 * difference.square().mean()
        weighted = self.config.gradient_weight * edges + self.config.chroma_weight * chroma
        return pixels + weighted + self.config.kl_weight * divergence


def build(config: VaeConfig, size: int) -> Any:
    """An autoencoder of this shape, with random weights."""
    levels = len(config.channels)
    make: Any = AutoencoderKL  # whose annotations forbid more than one level
    return make(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        latent_channels=config.latent_channels,
        norm_num_groups=16,
        sample_size=size,
        mid_block_add_attention=False,
    )


def load(store: Store, artifact: Artifact) -> Any:
    """Open a trained autoencoder."""
    return AutoencoderKL.from_pretrained(store.path(artifact)).eval()


@torch.inference_mode()
def fidelity(model: Any, pictures: Pictures) -> float:
    """Mean PSNR of (N, h, w, 3) bytes encoded and decoded, dB: 10 log10(1 / MSE) of each picture in 0..1."""
    errors: list[Tensor] = []
    for start in range(0, len(pictures), BATCH):
        batch = as_tensor(pictures[start : start + BATCH]).to(model.device)
        back = model.decode(model.encode(2 * batch - 1).latent_dist.mean).sample.clamp(-1, 1)
        errors.append((back / 2 + 0.5 - batch).square().flatten(1).mean(1).cpu())
    return float((-10 * torch.log10(torch.cat(errors))).mean())


@torch.inference_mode()
def _scale(model: Any, seen: Corpus) -> float:
    """One over the deviation of the latents, as Stable Diffusion's scaling factor."""
    batches = [
        as_tensor(seen.pictures[row : row + BATCH]) for row in range(0, min(MEASURED, len(seen.pictures)), BATCH)
    ]
    latents = torch.cat([model.encode(2 * batch - 1).latent_dist.mean for batch in batches])
    return float(1 / latents.std())
