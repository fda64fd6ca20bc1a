"""Encoded scenes: every picture through the VAE and every caption through the text encoder, once, for the UNet to learn from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import Runtime
from customdiff_core.devices import resolve_device
from customdiff_core.pretraining import clip as clips
from customdiff_core.pretraining import corpus, stages
from customdiff_core.pretraining import tokenizer as tokenizers
from customdiff_core.pretraining import vae as vaes
from customdiff_core.pretraining.clip import Pictures, as_tensor
from customdiff_core.progress import Progress, silent

BATCH = 128
SPLITS = ("training", "held_out")


@dataclass(frozen=True)
class Encoded:
    """Scenes as the UNet sees them.

    `mean` and `std` (N, C, h, w) fp16 of the latents, scaled to unit variance; `caption` (N,) the row of each scene's
    caption in `features` (M, L, D) fp16, whose row 0 is the empty caption.
    """

    mean: Tensor
    std: Tensor
    caption: Tensor
    features: Tensor


def encoded(
    scenes: Artifact,
    words: Artifact,
    text: Artifact,
    autoencoder: Artifact,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Artifact:
    """Encode the scenes.

    Returns:
        An `encoded_scenes` artifact: training.safetensors, held_out.safetensors.
    """

    def produce(folder: Path) -> int:
        device = resolve_device(runtime.device)
        tokenizer = tokenizers.load(store, words)
        encoder = clips.text_encoder(clips.load(store, text), tokenizer)
        encoder.to(device)
        model = vaes.load(store, autoencoder).to(device)
        rows = 0
        for split in SPLITS:
            seen = corpus.load(store, scenes, split)
            captions = ["", *dict.fromkeys(seen.captions)]
            places = {caption: row for row, caption in enumerate(captions)}
            tensors = latents_of(model, seen.pictures, progress)
            tensors["caption"] = torch.tensor([places[caption] for caption in seen.captions])
            tensors["features"] = features_of(encoder, tokenizer, captions)
            save_file(tensors, folder / f"{split}.safetensors")
            rows += len(seen.captions)
        return rows

    return store.make(stages.encoded(scenes, words, text, autoencoder), produce)


def load(store: Store, artifact: Artifact, split: str) -> Encoded:
    """Open the "training" or the "held_out" scenes."""
    return Encoded(**load_file(store.path(artifact) / f"{split}.safetensors"))


@torch.inference_mode()
def latents_of(model: Any, pictures: Pictures, progress: Progress) -> dict[str, Tensor]:
    """Mean and deviation of the latents of (N, h, w, 3) bytes, scaled to unit variance."""
    scale, parts = model.config.scaling_factor, []
    for start in range(0, len(pictures), BATCH):
        batch = 2 * as_tensor(pictures[start : start + BATCH]).to(model.device) - 1
        posterior = model.encode(batch).latent_dist
        parts.append(torch.stack([posterior.mean, posterior.std]).mul(scale).half().cpu())
        progress(min(start + BATCH, len(pictures)), len(pictures), "pictures encoded")
    mean, std = torch.cat(parts, dim=1)
    return {"mean": mean.contiguous(), "std": std.contiguous()}


@torch.inference_mode()
def features_of(encoder: Any, tokenizer: Any, captions: list[str]) -> Tensor:
    """(M, L, D) text features, fp16, padded as the pipeline pads."""
    parts: list[Tensor] = []
    for start in range(0, len(captions), BATCH):
        tokens = tokenizer(
            captions[start : start + BATCH], padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids.to(encoder.device)
        parts.append(encoder(tokens).last_hidden_state.half().cpu())
    return torch.cat(parts)
