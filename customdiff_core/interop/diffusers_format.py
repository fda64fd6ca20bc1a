"""diffusers' Custom Diffusion: a folder with `pytorch_custom_diffusion_weights.{safetensors,bin}` and a file a token.

Its loader counts processors, and refuses a file without those of self-attention, which hold nothing: they are written as
empty dicts in the pickle and, since safetensors has no dicts, as empty tensors there, which it takes for the same.

SDXL's pipeline takes the pooled embedding at the largest token id, which is V*'s: before drawing, POOL_AT_END must be run.

Load with `pipeline.unet.load_attn_procs(folder, weight_name=..., _pipeline=pipeline)`: without `_pipeline` it does nothing.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from customdiff_core.errors import DeltaError
from customdiff_core.finetuning.cross_attention import CROSS_ATTENTION
from customdiff_core.interop import embeddings
from customdiff_core.interop.content import PICKLES, Parts, tensors_of

POOL_AT_END = "pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id"
STEM = "pytorch_custom_diffusion_weights"
MARK = "_custom_diffusion"
LAYER = re.compile(r"(.+\.attn2)\.processor\.(to_[a-z]+)_custom_diffusion((?:\.0)?\.(?:weight|bias))")


def weights_file(folder: Path) -> Path | None:
    """The weights in such a folder, safetensors first."""
    return next((path for end in (".safetensors", ".bin") if (path := folder / f"{STEM}{end}").is_file()), None)


def matches(content: dict[str, Any]) -> bool:
    """Whether a file is of this format."""
    return any(MARK in name for name in content)


def read(path: Path, content: dict[str, Any]) -> Parts:
    """Read the weights.

    Raises:
        DeltaError: for a name that is not this format's.
    """
    full = {name: tensor for name, tensor in content.items() if not _is_empty(tensor)}
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors_of(full, str(path)).items():
        found = LAYER.fullmatch(name)
        if found is None:
            raise DeltaError(f"{path}: found {name}, need <block>.attn2.processor.to_*{MARK}.*; export it again")
        weights[f"{found[1]}.{found[2]}{found[3]}"] = tensor
    return Parts(weights)


def write(folder: Path, parts: Parts, suffix: str = ".safetensors") -> list[Path]:
    """Write weights and tokens into a folder; `suffix` is .safetensors or .bin.

    Raises:
        DeltaError: if the parts hold more than cross-attention.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [embeddings.write(folder, token, rows, suffix) for token, rows in parts.tokens.items()]
    if not parts.weights:
        return written
    check_cross_attention(parts, "diffusers' Custom Diffusion")
    path, named = folder / f"{STEM}{suffix}", {_theirs(name): tensor for name, tensor in parts.weights.items()}
    layers = sorted({name.partition(".attn2.")[0] for name in parts.weights})
    if suffix in PICKLES:
        torch.save({**named, **{f"{layer}.attn1.processor": {} for layer in layers}}, path)
    else:
        save_file({**named, **{f"{layer}.attn1.processor": torch.empty(0) for layer in layers}}, path)
    return [path, *written]


def check_cross_attention(parts: Parts, what: str) -> None:
    """Check that a format that holds cross-attention alone is given no more.

    Raises:
        DeltaError: naming what it cannot hold.
    """
    beyond = sorted(name for name in parts.weights if not name.endswith(CROSS_ATTENTION))
    if beyond:
        raise DeltaError(
            f"{what}: found {beyond[0]} among {len(parts.weights)} weights, need cross-attention alone; write a whole model "
            "(webui) instead"
        )


def _theirs(name: str) -> str:
    """a.attn2.to_out.0.bias -> a.attn2.processor.to_out_custom_diffusion.0.bias."""
    layer, _, rest = name.partition(".attn2.")
    part, _, end = rest.partition(".")
    return f"{layer}.attn2.processor.{part}{MARK}.{end}"


def _is_empty(value: Any) -> bool:
    return (isinstance(value, Tensor) and not value.numel()) or value == {}
