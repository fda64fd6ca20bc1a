"""Whole models in CompVis' layout, as webui reads them, with the tokens in `embeddings/`. Stable Diffusion 1's shape.

Stable Diffusion 2 and XL keep an OpenCLIP text encoder in theirs, of which diffusers' folder lacks a layer: not written.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from customdiff_core.errors import DeltaError
from customdiff_core.finetuning.cross_attention import KEYS_AND_VALUES
from customdiff_core.interop import embeddings
from customdiff_core.interop.content import Base, Parts, tensors_of
from customdiff_core.interop.ldm_names import TEXT, UNET, VAE, VAE_ATTENTION, renamed, unet_prefixes, vae_prefixes
from customdiff_core.weights import encoder_names, model_folder, pipeline_part, weights_files

logger = logging.getLogger(__name__)

FOLDER = "embeddings"


def matches(content: dict[str, Any]) -> bool:
    """Whether a file is a whole model."""
    state = content.get("state_dict", content)
    return isinstance(state, Mapping) and f"{UNET}input_blocks.0.0.weight" in state


def read(path: Path, content: dict[str, Any], base: Base) -> Parts:
    """Read what a whole model's UNet has of its own: keys and values, and every other weight that differs from the base's.

    A text encoder that differs is left out, and the log says so: no delta has a place for it.

    Raises:
        DeltaError: if a weight is no tensor.
    """
    state = content.get("state_dict", content)
    tensors = tensors_of({name: one for name, one in state.items() if str(name).startswith((UNET, TEXT))}, str(path))
    pairs = unet_prefixes(base.unet_config)
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(UNET):
            theirs = name.removeprefix(UNET)
            weights[renamed(theirs, pairs, back=True) or theirs] = tensor
    originals = base.weights(name for name in weights.keys() & base.names if not name.endswith(KEYS_AND_VALUES))
    same = {name for name, original in originals.items() if _same(weights[name], original)}
    _say_text_encoder(path, tensors, _component(model_folder(base.source), "text_encoder"))
    return Parts({name: tensor for name, tensor in weights.items() if name not in same})


def write(path: Path, parts: Parts, base: Base) -> list[Path]:
    """Write the base model with the changed weights in it, and the tokens beside.

    Raises:
        DeltaError: for a base model whose text encoder has another layout there.
    """
    folder = model_folder(base.source)
    act = pipeline_part(base.source, "text_encoder/config.json").get("hidden_act")
    if len(encoder_names(folder)) > 1 or act != "quick_gelu":
        raise DeltaError(
            "webui checkpoint: found a text encoder that is not Stable Diffusion 1's, need one that is; write diffusers or kohya"
        )
    unet = {name: parts.weights.get(name, tensor) for name, tensor in _component(folder, "unet").items()}
    state = {f"{UNET}{_must(name, unet_prefixes(base.unet_config))}": tensor for name, tensor in unet.items()}
    vae_pairs = vae_prefixes(pipeline_part(base.source, "vae/config.json"))
    for name, tensor in _component(folder, "vae").items():
        theirs = renamed(name, vae_pairs) or name
        convolved = any(f".attn_1.{part}.weight" in theirs for _, part in VAE_ATTENTION[1:])
        state[f"{VAE}{theirs}"] = tensor[..., None, None] if convolved and tensor.ndim == 2 else tensor
    state |= {f"{TEXT}{name}": tensor for name, tensor in _component(folder, "text_encoder").items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    written = [embeddings.write_webui(path.parent / FOLDER, token, rows) for token, rows in parts.tokens.items()]
    return [path, *written]


def _same(tensor: Tensor, original: Tensor) -> bool:
    """Whether a weight is the base model's, in whatever type the file has it."""
    return torch.equal(original.to(tensor.dtype), tensor)


def _say_text_encoder(path: Path, tensors: Mapping[str, Tensor], originals: Mapping[str, Tensor]) -> None:
    differing = [
        name
        for name, original in originals.items()
        if f"{TEXT}{name}" in tensors and not _same(tensors[f"{TEXT}{name}"], original)
    ]
    if differing:
        logger.warning(
            "left out: %s: found a text encoder with %d weights of its own, such as %s, need the base model's; pictures will "
            "differ from those of the whole model",
            path,
            len(differing),
            differing[0],
        )


def _component(folder: Path, name: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in weights_files(folder / name):
        with safe_open(path, framework="pt") as file:
            found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return found


def _must(name: str, pairs: list[tuple[str, str]]) -> str:
    found = renamed(name, pairs)
    if found is None:
        raise DeltaError(
            f"webui checkpoint: found {name}, which has no name there, need Stable Diffusion 1's structure"
        )
    return found
