"""Inception's features (torch-fidelity's own network and weights), which published KID and FID figures are of."""

import pickle
import tempfile
import warnings
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from customdiff_core.config import Device
from customdiff_core.devices import resolve_device
from customdiff_core.errors import WeightsError
from customdiff_core.profiles import InceptionSource
from customdiff_core.retrieval.encoder import batches
from customdiff_core.retrieval.metadata import Vectors

BATCH = 32
FEATURES = "2048"  # the pooled layer that KID is defined on


class Inception:
    """Embeds images; features are the 2,048 pooled ones, as they are: KID's kernel wants them unnormalised.

    Args:
        source: the weights' file, tensors alone: torch-fidelity would run whatever a pickle says, and never sees this one.
        device: where it runs.

    Raises:
        WeightsError: if the file is not torch-fidelity's Inception.
    """

    def __init__(self, source: InceptionSource, device: Device = "auto") -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch-fidelity imports deprecated names
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        make: Any = FeatureExtractorInceptionV3
        self.device = resolve_device(device)
        try:
            state = torch.load(source.path, map_location="cpu", weights_only=True)
            with tempfile.TemporaryDirectory() as folder:
                torch.save(state, safe := Path(folder) / "inception.pth")
                model = make(source.name, [FEATURES], feature_extractor_weights_path=safe)
        except (RuntimeError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
            raise WeightsError(
                f"{source.path}: found a file that is not Inception's weights ({type(error).__name__}), need torch-fidelity's "
                "weights-inception-2015-12-05-6726825d.pth; give that file as model.inception"
            ) from error
        self._model = model.to(self.device)

    @torch.inference_mode()
    def images(self, images: Iterable[Image.Image]) -> Vectors:
        """Embed images: (N, 2048)."""
        parts = [self._embed(batch) for batch in batches(images, BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, int(FEATURES)), np.float32)

    def _embed(self, batch: list[Image.Image]) -> Vectors:
        parts: list[torch.Tensor] = []
        for _, equal in groupby(batch, key=lambda one: one.size):  # it scales them itself, and takes no others together
            pixels = torch.from_numpy(np.stack([np.asarray(one.convert("RGB")) for one in equal])).permute(0, 3, 1, 2)
            parts += self._model(pixels.to(self.device))
        return torch.cat(parts).float().cpu().numpy()
