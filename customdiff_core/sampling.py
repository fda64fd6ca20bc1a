"""Draw images from a base or customized model: prompts x seeds in batches, both halves of guidance in one forward.

The first noise of an image depends on its seed and prompt number alone, so that methods are compared on equal noise.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from PIL import Image

from customdiff_core import delta as deltas
from customdiff_core import images, stages, tables, text
from customdiff_core.artifacts import Artifact, Store, write_atomic
from customdiff_core.config import Precision, Runtime, SampleConfig
from customdiff_core.devices import autocast, needing_memory, resolve_device
from customdiff_core.finetuning.components import (
    Components,
    Condition,
    Network,
    Schedule,
    hold_frozen,
    load_components,
    load_vae,
)
from customdiff_core.latents import PIXELS
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.seeding import torch_generator

LESS_MEMORY = (
    "lower sample.batch_size or set sample.precision to bf16 (customdiff generate: --batch 1 --precision bf16); of a training's "
    "previews, train.preview_prompts"
)


def make_sampler(components: Components, config: SampleConfig) -> Schedule:
    """Return the sampler with the model's own noise schedule."""
    kind: Any = {"ddim": DDIMScheduler, "dpm-solver++": DPMSolverMultistepScheduler}[config.sampler]
    options = {"clip_sample": False} if config.sampler == "ddim" else {"algorithm_type": "dpmsolver++"}
    # As arguments: of the config's own values those that its file does not state would give way to the sampler's defaults.
    return kind.from_config(components.noise_scheduler.config, **options)


@torch.inference_mode()
def sample_latents(
    components: Components,
    condition: Condition,
    empty: Condition,
    noise_names: Sequence[tuple[int, int]],
    config: SampleConfig,
) -> torch.Tensor:
    """Denoise a batch.

    Args:
        components: the model.
        condition: of B prompts.
        empty: of the one prompt that guidance leads away from.
        noise_names: (prompt number, seed) of each image.
        config: sampler, steps, guidance.

    Returns:
        (B, 4, h, w) latents, still scaled.
    """
    unet, device = components.unet, components.device
    shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    generators = [torch_generator("sample", number, seed) for number, seed in noise_names]
    sampler = make_sampler(components, config)
    sampler.set_timesteps(config.steps)
    latents = (
        torch.stack([torch.randn(shape, generator=one) for one in generators]).to(device) * sampler.init_noise_sigma
    )
    both = Condition.cat([empty.take(torch.zeros(len(noise_names), dtype=torch.long)), condition])
    for step in sampler.timesteps:
        scaled = sampler.scale_model_input(latents, step)
        with autocast(device, config.precision):
            predicted = components.predict(torch.cat([scaled, scaled]), step.to(device), both)
        free, guided = predicted.float().chunk(2)
        prediction = free + config.guidance_scale * (guided - free)
        extra = (
            {"eta": config.eta, "variance_noise": _step_noise(generators, shape, device)}
            if config.eta and config.sampler == "ddim"
            else {}
        )
        latents = sampler.step(prediction, step, latents, **extra).prev_sample
    return latents


@torch.inference_mode()
def decode_latents(vae: Network, latents: torch.Tensor) -> list[Image.Image]:
    """Latents (B, 4, h, w) to RGB images; no more at a time than the VAE has memory for."""
    side = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels of a latent cell
    batch = max(1, PIXELS // (latents[0, 0].numel() * side**2))
    decoded = [vae.decode(part / vae.config.scaling_factor).sample.float() for part in latents.split(batch)]
    pixels = torch.cat(decoded)
    array = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one) for one in array]


@needing_memory("drawing", LESS_MEMORY)
def draw_images(
    components: Components,
    vae: Network,
    prompts: Sequence[str],
    seeds: Sequence[int],
    config: SampleConfig,
    progress: Progress = silent,
    kept: Path | None = None,
) -> list[Image.Image]:
    """Draw every prompt with every seed, prompt by prompt: len(prompts) x len(seeds) images.

    Args:
        components: the model.
        vae: its decoder.
        prompts: N of them.
        seeds: of each prompt.
        config: the sampler; its batch size says which images are drawn together, whatever was drawn before.
        progress: told after every batch.
        kept: a folder where finished batches are kept and found, for a run that is broken off.

    Raises:
        DeviceMemoryError: if a batch is too large for the GPU.
    """
    with torch.inference_mode():
        condition = text.encode_many(components, prompts)
        empty = text.unconditional(components, config.negative_prompt)
    jobs = [(number, seed) for number in range(len(prompts)) for seed in seeds]
    drawn: list[Image.Image] = []
    for start in range(0, len(jobs), config.batch_size):
        batch = jobs[start : start + config.batch_size]
        rows = torch.tensor([number for number, _ in batch])

        def draw(rows: torch.Tensor = rows, batch: list[tuple[int, int]] = batch) -> list[Image.Image]:
            return decode_latents(vae, sample_latents(components, condition.take(rows), empty, batch, config))

        drawn += _kept(kept, start // config.batch_size, draw) if kept else draw()
        progress(len(drawn), len(jobs), "images drawn")
    return drawn


def load_model(
    profile: Profile, delta: Artifact | None, store: Store, runtime: Runtime, precision: Precision = "fp32"
) -> tuple[Components, Network]:
    """Load a profile's base model to draw in a precision, with a delta put in where one is given."""
    components = load_components(profile.model)
    if delta is not None:
        deltas.apply(components, deltas.load(store.path(delta) / deltas.FILE))
    hold_frozen(components.unet, precision)
    device = resolve_device(runtime.device)
    return components.to(device), load_vae(profile.model).to(device)


def generate(
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    delta: Artifact | None,
    profile: Profile,
    config: SampleConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Artifact:
    """Draw prompts x seeds from the base model, or from a customized one.

    Returns:
        A `samples` artifact: samples.parquet, one row an image, with its full recipe, which is in the PNG too.
    """

    recipe = stages.generate(prompts, seeds, delta, profile, config)

    @needing_memory("drawing", LESS_MEMORY)
    def produce(folder: Path) -> int:
        components, vae = load_model(profile, delta, store, runtime, config.precision)
        scratch = store.scratch(recipe.kind, recipe.key, recipe.inputs)
        drawn = draw_images(components, vae, prompts, seeds, config, progress, scratch)
        jobs = [(number, seed) for number in range(len(prompts)) for seed in seeds]
        origin = {"model": components.digest, "delta": delta.sha256 if delta else None, **config.model_dump()}
        rows = [
            {
                "prompt": prompts[number],
                "prompt_id": number,
                "seed": seed,
                "image": images.encode(image, {"prompt": prompts[number], "number": number, "seed": seed} | origin),
                "sampler": config.sampler,
                "steps": config.steps,
                "guidance": config.guidance_scale,
            }
            for (number, seed), image in zip(jobs, drawn, strict=True)
        ]
        return tables.write(folder / "samples.parquet", rows)

    made = store.make(recipe, produce)
    store.drop_scratch(recipe.kind, recipe.key)  # not before: a full disk would cost all that was drawn
    return made


def _kept(folder: Path, number: int, draw: Callable[[], list[Image.Image]]) -> list[Image.Image]:
    """Batch `number` as a run before drew it, or else drawn and kept; its name carries its hash."""
    for path in folder.glob(f"batch-{number:05d}-*.npy"):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest()[:16] == path.stem[-16:]:
            return [Image.fromarray(one) for one in np.load(io.BytesIO(data), allow_pickle=False)]
    drawn, buffer = draw(), io.BytesIO()
    np.save(buffer, np.stack([np.asarray(one) for one in drawn]), allow_pickle=False)
    name = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    write_atomic(folder / f"batch-{number:05d}-{name}.npy", buffer.getvalue())
    return drawn


def _step_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.stack([torch.randn(shape, generator=one) for one in generators]).to(device)
