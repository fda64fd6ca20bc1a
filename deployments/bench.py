"""`make bench`: ratios, each measured side by side in one run, so that they hold on any machine.

Training and drawing: every line times a plain way and this project's way in turn (A B A B ...), and prints the medians and their
ratio. The plain way is in float32, and so is ours on the first line; the next lines have the precision that this processor
trains with, and compile the network (some minutes before the first pair). Fetching and search in a large index have modules of
their own, bench_fetch.py and bench_search.py.
"""

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from customdiff_core import concepts, images, latents, profiles, tables, text
from customdiff_core.artifacts import Store
from customdiff_core.augmentation import augment
from customdiff_core.config import IndexConfig, Runtime
from customdiff_core.finetuning.components import load_components, load_vae
from customdiff_core.finetuning.cross_attention import KEYS_AND_VALUES
from customdiff_core.finetuning.finetune import make_trainer
from customdiff_core.finetuning.trained_parameters import train_parameters
from customdiff_core.processor import native_precision
from customdiff_core.retrieval.retrieve import build_index, retrieve
from customdiff_core.sampling import draw_images
from deployments import bench_fetch, bench_search

ROUNDS = 15

Pair = tuple[str, Callable[[], object], Callable[[], object]]  # what, the plain way, ours


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    table = Table(
        "what", "plain", "here", "ratio", title=f"medians of {ROUNDS} pairs, {torch.get_num_threads()} threads"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, plain, ours in (*training_step(Store(Path(folder))), *drawing()):
            a, b = side_by_side(plain, ours)
            table.add_row(name, f"{a * 1e3:.0f} ms", f"{b * 1e3:.0f} ms", f"{a / b:.2f}x")
    Console().print(table)
    bench_fetch.main()
    bench_search.main()


def side_by_side(plain: Callable[[], object], ours: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both, run in turn after one warm-up of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for way, kept in zip((plain, ours), times, strict=True):
            started = time.perf_counter()
            way()
            if turn:
                kept.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def training_step(store: Store) -> Iterator[Pair]:
    """One training step, against one that runs VAE and text encoder on all images and trains the whole token table."""
    profile, concept = profiles.get("openmoji"), concepts.load("cat")
    index = build_index(profile, IndexConfig(scenes=2500), store=store)
    regularization = retrieve(concept, index, profile, profile.retrieve.model_copy(update={"count": 64}), store=store)
    training_set = augment(concept, regularization, profile, profile.augment, store=store)
    changes: list[dict[str, Any]] = [
        {"precision": precision} for precision in dict.fromkeys(("fp32", native_precision()))
    ]
    changes.append({"precision": native_precision(), "compiled": True})
    trainers = [
        make_trainer((concept,), (training_set,), profile, profile.finetune.model_copy(update=change), store, Runtime())
        for change in changes
    ]

    components, vae = load_components(profile.model), load_vae(profile.model)
    embedding = components.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    weights = train_parameters(components.unet, KEYS_AND_VALUES, detach_bos=False)
    optimizer = torch.optim.AdamW([*weights.values(), embedding], lr=1e-5)
    rows = tables.read(store, training_set, "examples").head(profile.finetune.batch_size)
    prior = tables.read(store, regularization, "regularization").head(profile.finetune.batch_size)
    pictures = [images.open_trusted(data).resize((64, 64)) for data in [*rows["image"], *prior["image"]]]
    prompts = [concept.with_category(concept.instance_prompt)] * len(rows) + prior["caption"].tolist()

    def plain() -> None:
        with torch.no_grad():
            clean = vae.encode(latents.to_pixels(pictures)).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(clean)
        times = torch.randint(1000, (len(clean),))
        features = components.text_encoder(text.token_ids(components.encoders[0], prompts)).last_hidden_state
        noisy = components.noise_scheduler.add_noise(clean, noise, times)
        loss = (components.unet(noisy, times, features).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    size = profile.finetune.batch_size
    first, *others = [trainer.train_step for trainer in trainers]
    yield f"training step, batch {size} + {size}, float32", plain, first
    for change, step in zip(changes[1:], others, strict=True):
        compiled = ", compiled" if "compiled" in change else ""
        yield f"the same, here in {change['precision']}{compiled}", plain, step


def drawing() -> Iterator[Pair]:
    """Eight pictures in one batch, against eight calls of diffusers' own pipeline."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    profile = profiles.get("openmoji")
    components, vae = load_components(profile.model), load_vae(profile.model)
    whole, half = (
        profile.evaluate.sample.model_copy(update={"steps": 10, "precision": precision})
        for precision in ("fp32", native_precision())
    )
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder": components.text_encoder,
        "tokenizer": components.tokenizer,
        "unet": components.unet,
        "scheduler": components.noise_scheduler,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    pipeline = StableDiffusionPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)

    def plain() -> None:
        for _ in range(8):
            pipeline("a cat", num_inference_steps=whole.steps, guidance_scale=whole.guidance_scale)

    ours, faster = (partial(draw_images, components, vae, ["a cat"], range(8), config) for config in (whole, half))
    yield f"eight pictures, {whole.steps} steps, float32", plain, ours
    if half != whole:
        yield "the same, float32 against bfloat16", ours, faster


if __name__ == "__main__":
    main()
