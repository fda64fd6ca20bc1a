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
from customdiff_core.errors import TrainingError
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

    def __deepcopy__(self, memo: object) -> "Encoded":
        """Itself: the average of the weights looks at the same scenes."""
        return self


def latents(
    scenes: Artifact, autoencoder: Artifact, *, store: Store, runtime: Runtime = Runtime(), progress: Progress = silent
) -> Artifact:
    """Encode every picture.

    Returns:
        A `scene_latents` artifact: training.safetensors and held_out.safetensors with mean and std.
    """

    def produce(folder: Path) -> int:
        model = vaes.load(store, autoencoder).to(resolve_device(runtime.device))
        rows = 0
        for split in SPLITS:
            seen = corpus.load(store, scenes, split)
            save_file(latents_of(model, seen.pictures, progress), folder / f"{split}.safetensors")
            rows += len(seen.captions)
        return rows

    return store.make(stages.latents(scenes, autoencoder), produce)


def features(
    scenes: Artifact, words: Artifact, text: Artifact, *, store: Store, runtime: Runtime = Runtime()
) -> Artifact:
    """Encode every caption.

    Returns:
        A `caption_features` artifact: training.safetensors and held_out.safetensors with caption and features.
    """

    def produce(folder: Path) -> int:
        tokenizer = tokenizers.load(store, words)
        encoder = clips.text_encoder(clips.load(store, text), tokenizer)
        encoder.to(resolve_device(runtime.device))
        rows = 0
        for split in SPLITS:
            captions = corpus.load(store, scenes, split).captions
            unique = ["", *dict.fromkeys(captions)]
            places = {caption: row for row, caption in enumerate(unique)}
            tensors = {"caption": torch.tensor([places[caption] for caption in captions])}
            tensors["features"] = features_of(encoder, tokenizer, unique)
            save_file(tensors, folder / f"{split}.safetensors")
            rows += len(unique)
        return rows

    return store.make(stages.features(scenes, words, text), produce)


def load(store: Store, pictures: Artifact, captions: Artifact, split: str) -> Encoded:
    """Open the "training" or the "held_out" scenes.

    Raises:
        TrainingError: if pictures and captions are of different scenes.
    """
    scenes = [store.manifest(one).recipe.inputs["scenes"] for one in (pictures, captions)]
    if scenes[0] != scenes[1]:
        raise TrainingError(
            f"pretraining: found latents of the scenes {scenes[0][:16]} and captions of {scenes[1][:16]}, need both of the "
            "same; encode one of them anew"
        )
    parts = [load_file(store.path(one) / f"{split}.safetensors") for one in (pictures, captions)]
    return Encoded(**parts[0], **parts[1])


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
