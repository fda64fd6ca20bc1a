"""DINO image alignment: the cosine in the space of a self-supervised ViT, which knows no words (CustomConcept101's measure).

Any ViT of transformers (ViTModel, Dinov2Model) in a local folder of safetensors; a picture is its class token, L2-normalised.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image

from customdiff_core.config import Device
from customdiff_core.devices import resolve_device
from customdiff_core.profiles import VisionSource
from customdiff_core.retrieval.encoder import batches
from customdiff_core.retrieval.metadata import Vectors
from customdiff_core.weights import vision_files

BATCH = 64


class Dino:
    """Embeds images; vectors are L2-normalised float32.

    Args:
        source: the folder.
        device: where it runs.

    Raises:
        WeightsError: if the folder is not complete.
    """

    def __init__(self, source: VisionSource, device: Device = "auto") -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel

        vision_files(source)
        self.device = resolve_device(device)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self._preprocess: Any = AutoImageProcessor.from_pretrained(source.path, use_fast=False, **options)
        if AutoConfig.from_pretrained(source.path, **options).model_type == "vit":
            options["add_pooling_layer"] = False  # which nobody trained, and transformers would warn of
        model: Any = AutoModel.from_pretrained(source.path, use_safetensors=True, **options)
        self._model = model.to(self.device).eval()

    @torch.inference_mode()
    def images(self, images: Iterable[Image.Image]) -> Vectors:
        """Embed images: (N, D)."""
        parts = [self._embed(batch) for batch in batches(images, BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def _embed(self, batch: list[Image.Image]) -> Vectors:
        pixels = self._preprocess(images=batch, return_tensors="pt").pixel_values.to(self.device)
        token = self._model(pixel_values=pixels).last_hidden_state[:, 0].float()
        return torch.nn.functional.normalize(token, dim=-1).cpu().numpy()
