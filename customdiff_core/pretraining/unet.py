"""UNet: latents from noise, told by captions (diffusers' UNet2DConditionModel)."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import Runtime
from customdiff_core.devices import resolve_device
from customdiff_core.errors import TrainingError
from customdiff_core.finetuning.components import attend_plainly
from customdiff_core.pretraining import encoded, stages
from customdiff_core.pretraining.config import UNetConfig
from customdiff_core.pretraining.encoded import Encoded
from customdiff_core.pretraining.folders import forget_paths
from customdiff_core.pretraining.loop import pretrain
from customdiff_core.progress import Progress, silent
from customdiff_core.seeding import numpy_rng, torch_generator

MEASURED = 1024  # held-out scenes of which the loss is taken
BATCH = 128
UP_LAYER = re.compile(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)")


def unet(
    latents: Artifact,
    features: Artifact,
    config: UNetConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
    start: Artifact | None = None,
) -> Artifact:
    """Train the denoiser from nothing, or further.

    Args:
        latents: of the scenes' pictures.
        features: of their captions.
        config: the model's shape and its training.
        store: where the artifact and the checkpoints go.
        runtime: the device.
        progress: told after every step.
        start: a `unet` artifact to go on from, of the same shape or of fewer layers a level.

    Returns:
        A `unet` artifact: a diffusers folder, the scheduler's beside it, history.parquet (step, loss, seconds) and
        held_out.parquet (timestep, loss).
    """
    recipe = stages.unet(latents, features, config, start)

    def produce(folder: Path) -> int:
        seen = encoded.load(store, latents, features, "training")
        torch.manual_seed(config.seed)
        model = build(config, seen)
        if start:
            model = deepened(load(store, start), model)
        model.to(resolve_device(runtime.device))
        attend_plainly(model, config.precision, model.config.sample_size**2)
        if config.compiled:
            model.compile(dynamic=False)
        loss = Denoising(model, seen, config)
        scratch = store.scratch(recipe.kind, recipe.key)
        made, history = pretrain(loss, loss.of_step, config, scratch=scratch, device=runtime.device, progress=progress)
        made.model.save_pretrained(folder / "unet")
        scheduler(config).save_pretrained(folder / "scheduler")
        forget_paths(folder)
        tables.write(folder / "history.parquet", history)
        tables.write(
            folder / "held_out.parquet",
            held_out_losses(made.model, encoded.load(store, latents, features, "held_out"), config),
        )
        return config.steps

    return store.make(recipe, produce, volatile=("history.parquet",))


class Denoising(nn.Module):
    """The weighted error of a predicted epsilon or velocity (min-SNR weights, arXiv:2303.09556)."""

    def __init__(self, model: Any, seen: Encoded, config: UNetConfig) -> None:
        super().__init__()
        self.model, self.seen, self.config = model, seen, config
        self.noises = scheduler(config)
        generator = torch_generator("shuffled captions", config.seed)
        count = len(seen.caption)
        order = torch.randperm(count, generator=generator) if config.shuffled_captions else torch.arange(count)
        self.caption = seen.caption[order]

    def of_step(self, step: int) -> Tensor:
        """The loss of a step's own batch, noise and times."""
        config, seen = self.config, self.seen
        rng, generator = numpy_rng("unet batch", config.seed, step), torch_generator("unet noise", config.seed, step)
        rows = torch.from_numpy(rng.choice(len(seen.caption), config.batch_size, replace=False))
        mean = seen.mean[rows].float()
        clean = mean + seen.std[rows].float() * torch.randn(mean.shape, generator=generator)
        captions = self.caption[rows]
        captions[torch.rand(len(rows), generator=generator) < config.unconditional] = 0
        return self(clean, seen.features[captions].float(), generator).mean()

    def forward(
        self, clean: Tensor, features: Tensor, generator: torch.Generator, times: Tensor | None = None
    ) -> Tensor:
        """(B,) the weighted mean squared error of each of (B, C, h, w) latents."""
        device = self.model.device
        if times is None:
            # One time from each of B equal parts of the schedule: less noisy than B independent ones.
            shares = (torch.arange(len(clean)) + torch.rand(len(clean), generator=generator)) / len(clean)
            times = shares.mul(self.noises.config.num_train_timesteps).long()
        noise = torch.randn(clean.shape, generator=generator)
        noisy = self.noises.add_noise(clean, noise, times).to(device)
        velocity = self.config.prediction == "v_prediction"
        target: Tensor = self.noises.get_velocity(clean, noise, times) if velocity else noise
        predicted = self.model(noisy, times.to(device), features.to(device)).sample.float()
        errors = (predicted - target.to(device)).square().flatten(1).mean(1)
        return errors * weights(self.noises, times, self.config).to(device)


def weights(noises: Any, times: Tensor, config: UNetConfig) -> Tensor:
    """min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for velocity; SNR = alpha² / sigma² at each time."""
    kept = noises.alphas_cumprod[times]
    snr = kept / (1 - kept)
    return snr.clamp(max=config.min_snr_gamma) / (snr + (1 if config.prediction == "v_prediction" else 0))


def scheduler(config: UNetConfig) -> Any:
    """The noise schedule: Stable Diffusion's."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=config.prediction,
    )


def build(config: UNetConfig, seen: Encoded) -> Any:
    """A UNet of this shape, with random weights."""
    down = ("CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in config.attention_down)
    up = ("CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in config.attention_up)
    make: Any = UNet2DConditionModel  # whose annotations forbid more than one number of heads
    return make(
        sample_size=seen.mean.shape[-1],
        in_channels=seen.mean.shape[1],
        out_channels=seen.mean.shape[1],
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        cross_attention_dim=seen.features.shape[-1],
        attention_head_dim=config.heads,  # diffusers' old name for the number of heads
        norm_num_groups=16,
    )


def deepened(shallow: Any, deep: Any) -> Any:
    """Give `deep` the weights of `shallow`; layers that only `deep` has change nothing until they are trained.

    On the way down new layers come last in their level, on the way up after the first, so that every old layer meets the
    skip connection that it knows. A new residual layer passes on what it is given, its second convolution being zero, and a
    new attention adds nothing, its last projection being zero (as in ControlNet, arXiv:2302.05543, 3.1).

    Returns:
        `deep`.

    Raises:
        TrainingError: if it has fewer layers, or is of another shape.
    """
    levels = [len(model.down_blocks) for model in (shallow, deep)]
    if levels[0] != levels[1]:
        raise TrainingError(
            f"UNet to go on from: found {levels[0]} levels, need {levels[1]}; go on with the same channels"
        )
    old, new = shallow.state_dict(), deep.state_dict()
    taken: set[str] = set()
    for name in old:
        place = _place(name, shallow, deep)
        if place not in new or new[place].shape != old[name].shape:
            raise TrainingError(
                f"UNet to go on from: found {name} of {tuple(old[name].shape)}, need layers that the new one has too; "
                "go on with the same channels and as many layers or more"
            )
        new[place] = old[name]
        taken.add(place)
    deep.load_state_dict(new)
    for name, block in deep.named_modules():
        if f"{name}.conv2.weight" in new and f"{name}.conv2.weight" not in taken:
            _pass_on(block)
        elif f"{name}.proj_out.weight" in new and f"{name}.proj_out.weight" not in taken:
            _nullify(block.proj_out)
    return deep


def _place(name: str, shallow: Any, deep: Any) -> str:
    """What a weight of `shallow` is called in `deep`: on the way up layers but the first are counted from the end."""
    found = UP_LAYER.fullmatch(name)
    if not found:
        return name
    block, part, layer, rest = found.groups()
    count, now = (len(getattr(model.up_blocks[int(block)], part, ())) for model in (shallow, deep))
    place = int(layer) + now - count if int(layer) else 0
    return f"up_blocks.{block}.{part}.{place}.{rest}"


@torch.no_grad()
def _pass_on(block: Any) -> None:
    """Make a residual layer the identity of what comes from the layer before it; a skip connection adds nothing."""
    _nullify(block.conv2)
    if block.conv_shortcut is not None:
        _nullify(block.conv_shortcut)
        block.conv_shortcut.weight[:, : block.out_channels, 0, 0].fill_diagonal_(1)


@torch.no_grad()
def _nullify(layer: Any) -> None:
    layer.weight.zero_()
    layer.bias.zero_()


def load(store: Store, artifact: Artifact) -> Any:
    """Open a trained UNet."""
    return UNet2DConditionModel.from_pretrained(store.path(artifact) / "unet")


@torch.inference_mode()
def held_out_losses(model: Any, unseen: Encoded, config: UNetConfig) -> pd.DataFrame:
    """The loss on scenes that were never trained on, with their own captions, each at its own time."""
    loss = Denoising(model, unseen, config.model_copy(update={"shuffled_captions": False}))
    generator, rows = torch_generator("held-out noise"), torch.arange(min(MEASURED, len(unseen.caption)))
    every = torch.linspace(0, loss.noises.config.num_train_timesteps - 1, len(rows)).long()
    times = every[torch.randperm(len(rows), generator=generator)]
    parts = [
        loss(unseen.mean[part].float(), unseen.features[unseen.caption[part]].float(), generator, times[part])
        for part in rows.split(BATCH)
    ]
    return pd.DataFrame({"timestep": times.numpy(), "loss": torch.cat(parts).numpy()})
