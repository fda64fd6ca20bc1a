"""The CLIP that embeds captions and images, for retrieval and as a judge: any open_clip model, by folder or tag."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from customdiff_core.config import Device
from customdiff_core.devices import resolve_device
from customdiff_core.profiles import EncoderSource
from customdiff_core.retrieval.metadata import Vectors
from customdiff_core.weights import encoder_files, tag_config, tagged_weights

Item = TypeVar("Item")


class Encoder:
    """Embeds texts and images into one space; vectors are L2-normalised float32.

    Args:
        source: which open_clip model.
        device: where it runs.
    """

    def __init__(self, source: EncoderSource, device: Device = "auto", batch_size: int = 256) -> None:
        self.device = resolve_device(device)
        self.batch_size = batch_size
        self._model, self._preprocess, self._tokenize = _load(source)
        self._model.to(self.device).eval()

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Embed texts: (N, D)."""
        return self._embed(texts, self._encode_texts)

    def images(self, images: Iterable[Image.Image]) -> Vectors:
        """Embed images: (N, D)."""
        return self._embed(images, self._encode_images)

    def _encode_texts(self, batch: list[str]) -> torch.Tensor:
        return self._model.encode_text(self._tokenize(batch).to(self.device))

    def _encode_images(self, batch: list[Image.Image]) -> torch.Tensor:
        return self._model.encode_image(torch.stack([self._preprocess(image) for image in batch]).to(self.device))

    def _embed(self, items: Iterable[Item], encode: Callable[[list[Item]], torch.Tensor]) -> Vectors:
        with torch.inference_mode():
            parts = [
                torch.nn.functional.normalize(encode(batch).float(), dim=-1).cpu().numpy()
                for batch in batches(items, self.batch_size)
            ]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Cut into lists of `size`, the last one perhaps shorter; of the items no more is held than one list."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _load(source: EncoderSource) -> tuple[Any, Any, Any]:
    """Return model, image preprocessing and tokenizer."""
    import open_clip

    if source.path is None:
        trained = tag_config(source)
        model, _, preprocess = open_clip.create_model_and_transforms(
            source.model,
            pretrained=str(tagged_weights(source)),
            # open_clip only warns where a tag's activation is not its model's; OpenAI's CLIPs are QuickGELU's.
            force_quick_gelu=bool(trained.get("quick_gelu")),
            image_mean=trained.get("mean"),
            image_std=trained.get("std"),
        )
        return model, preprocess, open_clip.get_tokenizer(source.model)
    config_path, weights = encoder_files(source)
    config = json.loads(config_path.read_text())
    # open_clip resolves a tokenizer's name against the working directory: make the folder's own one absolute.
    tokenizer = (source.path / config["text_cfg"]["hf_tokenizer_name"]).resolve()
    config["text_cfg"]["hf_tokenizer_name"] = str(tokenizer)
    open_clip.factory._MODEL_CONFIGS[source.model] = config  # pyright: ignore[reportPrivateUsage]
    model, _, preprocess = open_clip.create_model_and_transforms(source.model, pretrained=str(weights))
    return model, preprocess, open_clip.get_tokenizer(source.model)
