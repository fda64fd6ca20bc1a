"""Open a file that nobody vouches for: safetensors, or a pickle of tensors and plain values and nothing else."""

import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from customdiff_core.errors import DeltaError, WeightsError
from customdiff_core.finetuning.components import (
    embedding_widths,
    load_tokenizers,
    load_unet_weights,
    unet_names,
)
from customdiff_core.finetuning.modifier_token import is_known
from customdiff_core.profiles import ModelSource
from customdiff_core.weights import pipeline_part

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
ENCODERS = ("text_encoder", "text_encoder_2")

Rows = dict[str, Tensor]  # a token's row (D,), by text encoder


@dataclass
class Parts:
    """What a file holds, under diffusers' names: weights, and the tokens' rows."""

    weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    tokens: dict[str, Rows] = field(default_factory=dict[str, Rows])


@dataclass(frozen=True)
class Base:
    """The base model that a file belongs to; its weights are read when they are needed."""

    source: ModelSource

    @property
    def unet_config(self) -> Mapping[str, Any]:
        """The UNet's config."""
        return pipeline_part(self.source, "unet/config.json")

    @property
    def names(self) -> set[str]:
        """The names of the UNet's weights."""
        return unet_names(self.source)

    @property
    def widths(self) -> dict[str, int]:
        """The width of each text encoder's token embedding."""
        return embedding_widths(self.source)

    def known(self, tokens: Iterable[str]) -> list[str]:
        """Those of some tokens that are words of a tokenizer already."""
        tokenizers = load_tokenizers(self.source).values()
        return [token for token in tokens if any(is_known(tokenizer, token) for tokenizer in tokenizers)]

    def weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The base model's weights of these names, in float32.

        Raises:
            DeltaError: if the base model has no weight of a name.
        """
        wanted = tuple(names)
        try:
            found = load_unet_weights(self.source, wanted) if wanted else {}
        except WeightsError:
            found = {}
        for name in wanted:
            if name not in found:
                raise DeltaError(
                    f"delta: found {name}, which the base model's UNet has not, need its layers; name the base it belongs to"
                )
        return {name: found[name] for name in wanted}


def open_content(path: Path) -> dict[str, Any]:
    """Return what a file holds: tensors by name, or a nested dict of them.

    Raises:
        DeltaError: if it is missing, damaged, or a pickle with a program in it.
    """
    if not path.is_file():
        raise DeltaError(f"{path}: found no file, need trained weights; correct the path")
    return _open_pickle(path) if path.suffix in PICKLES else _open_safetensors(path)


def metadata_of(path: Path) -> dict[str, str]:
    """Return the header of a safetensors file; empty for another."""
    if path.suffix in PICKLES:
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def tensors_of(value: Any, what: str) -> dict[str, Tensor]:
    """Check that a value is a dict of tensors.

    Raises:
        DeltaError: if it is not.
    """
    if not isinstance(value, dict):
        raise DeltaError(f"{what}: found {type(value).__name__}, need a dict of tensors; export it again")
    items = cast(dict[Any, Any], value)
    for name, tensor in items.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise DeltaError(f"{what}: found {name!r} of type {type(tensor).__name__}, need tensors; export it again")
    return cast(dict[str, Tensor], items)


def rows_of(value: Any, what: str) -> Rows:
    """A token's rows: one vector, or SDXL's list of two."""
    vectors = cast(list[Any], value if isinstance(value, (list, tuple)) else [value])
    if not 1 <= len(vectors) <= len(ENCODERS) or not all(isinstance(one, Tensor) for one in vectors):
        raise DeltaError(f"{what}: found {len(vectors)} values, need one vector for each text encoder; export it again")
    rows = {name: one.squeeze() for name, one in zip(ENCODERS, vectors, strict=False)}
    for row in rows.values():
        if row.ndim != 1:
            raise DeltaError(f"{what}: found shape {tuple(row.shape)}, need one vector a token; split it into tokens")
    return rows


def _open_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DeltaError(
            f"{path}: found no readable safetensors ({error}), need trained weights; copy it again"
        ) from error


def _open_pickle(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files' storage classes
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DeltaError(
            f"{path}: found a pickle with more than tensors in it, which could run any program, need tensors and plain values; "
            "it was not opened: ask for a safetensors file"
        ) from error
    except Exception as error:  # whatever a damaged file makes its reader stumble over
        raise DeltaError(
            f"{path}: found no readable pickle ({type(error).__name__}), need a whole one; copy it again"
        ) from error
    if not isinstance(found, dict):
        raise DeltaError(f"{path}: found {type(found).__name__}, need a dict of tensors; export it again")
    return cast(dict[str, Any], found)
