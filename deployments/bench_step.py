"""A training step at Stable Diffusion 1.4's shape (random weights, 256 px), against a plain one. Minutes, and 8 GB.

python -m deployments.bench_step

The plain step runs VAE and text encoder on every image and caption, and keeps the whole embedding table in the optimizer. Both
train the same keys and values on a view and a regularization image, in float32. Times are processor seconds; the memory is
what stays between two steps above the frozen weights: gradients, the optimizer's state, averages and cached examples.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from rich.console import Console
from rich.table import Table
from transformers import CLIPTextConfig, CLIPTextModel

from customdiff_core import profiles, text
from customdiff_core.config import FinetuneConfig
from customdiff_core.finetuning.components import Components, Condition, TextEncoder, load_encoders
from customdiff_core.finetuning.cross_attention import KEYS_AND_VALUES
from customdiff_core.finetuning.loop import Examples, Trainer
from customdiff_core.finetuning.modifier_token import add_modifier_tokens
from customdiff_core.finetuning.trained_parameters import train_parameters
from customdiff_core.latents import Latents

ROUNDS = 2
CELLS = 32  # 256 px
CAPTION = "photo of a cat on a red background"

Step = Callable[[], object]


def main() -> None:
    """Measure and print."""
    components, vae = models()
    plain, plain_held = plain_step(components, vae)
    ours, ours_held = our_step(components)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for step, kept in zip((plain, ours), times, strict=True):
            kept.append(seconds(step))
    table = Table("", "plain", "here", "ratio", title="Stable Diffusion 1.4's shape, 256 px, batch 1 + 1, float32")
    a, b = (min(kept) for kept in times)
    table.add_row("a step, processor seconds", f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}x")
    a, b = plain_held() / 1e6, ours_held() / 1e6
    table.add_row("held above the frozen weights", f"{a:.0f} MB", f"{b:.0f} MB", f"{b / a:.2f}")
    Console().print(table)


def models() -> tuple[Components, Any]:
    """UNet, text encoder and VAE of 1.4's shape, random and frozen; the embedded tokenizer, whose ids all exist there."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "layers_per_block": 2,
        "sample_size": CELLS,
    }
    unet: Any = UNet2DConditionModel(**config)
    clip = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    encoder: Any = CLIPTextModel(clip)
    vae_config: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    vae: Any = AutoencoderKL(**vae_config)
    for network in (unet, encoder, vae):
        network.requires_grad_(False).eval()
    tokenizer = load_encoders(profiles.get("openmoji").model)[0].tokenizer
    tokenizer.model_max_length = 77
    schedule = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return Components(unet, (TextEncoder("text_encoder", encoder, tokenizer),), schedule, digest="random"), vae


def plain_step(components: Components, vae: Any) -> tuple[Step, Callable[[], int]]:
    """The step, and what it holds."""
    embedding = components.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    weights = [components.unet.get_parameter(name) for name in _trained(components)]
    trained = [*weights, embedding]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    pictures = torch.randn(2, 3, 8 * CELLS, 8 * CELLS)

    def step() -> None:
        for one in trained:
            one.requires_grad_(True)
        with torch.no_grad():
            clean = vae.encode(pictures).latent_dist.sample() * vae.config.scaling_factor
        noise, times = torch.randn_like(clean), torch.randint(1000, (2,))
        features = components.text_encoder(text.token_ids(components.encoders[0], [CAPTION] * 2)).last_hidden_state
        noisy = components.noise_scheduler.add_noise(clean, noise, times)
        (components.unet(noisy, times, features).sample - noise).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        embedding.requires_grad_(False)

    def held() -> int:
        state = [value for one in optimizer.state.values() for value in one.values()]
        return _bytes(state) + _bytes(trained)  # a gradient is as large as its parameter

    return step, held


def our_step(components: Components) -> tuple[Step, Callable[[], int]]:
    """The step, and what it holds; 200 regularization images' latents and captions and 240 views are in memory."""
    encoder = components.encoders[0]
    rows = add_modifier_tokens(encoder, ["<v>"], ["ktn"]).rows
    weights = train_parameters(components.unet, KEYS_AND_VALUES, detach_bos=True)
    size = (440, 4, CELLS, CELLS)
    cached = torch.randn(size), torch.full(size, -10.0), torch.ones(440, 1, CELLS, CELLS)
    examples = Examples(
        latents=[Latents(*rows) for rows in zip(*cached, strict=True)],
        prompts=["photo of a <v> cat"] * 240,
        prior=Condition(torch.randn(200, 77, 768)),
        latent_scale=0.18215,
        views=[range(240)],
        priors=[range(240, 440)],
    )
    config = FinetuneConfig(steps=1, batch_size=1, learning_rate=1e-5)
    trainer = Trainer(components, examples, {encoder.name: rows}, weights, config)

    def held() -> int:
        state = [value for one in trainer.optimizer.state.values() for value in one.values()]
        captions = [examples.prior.features] if examples.prior else []
        trained = list(trainer.trained.values())
        average = trainer.average.values() if config.ema_decay else []  # else the weights themselves
        return _bytes(state) + _bytes(trained) + _bytes(average) + _bytes(cached) + _bytes(captions)

    return trainer.train_step, held


def seconds(work: Step) -> float:
    """Processor seconds of one run."""
    started = time.process_time()
    work()
    return time.process_time() - started


def _trained(components: Components) -> list[str]:
    return [name for name, _ in components.unet.named_parameters() if name.endswith(KEYS_AND_VALUES)]


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


if __name__ == "__main__":
    main()
