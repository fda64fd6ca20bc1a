"""LoRA files, for tools that read nothing else: the thin factors of each change, under kohya's or PEFT's names.

    kohya   lora_unet_mid_block_attentions_0_..._attn2_to_k.lora_down.weight (r, D_in), .lora_up.weight (D_out, r), .alpha = r
    PEFT    unet.mid_block.attentions.0....attn2.to_k.lora_A.weight (r, D_in), .lora_B.weight (D_out, r)

Every layer has the same rank, filled up with zeros: diffusers takes one for all, and scales layers of another one wrongly.
A LoRA has no place for biases or V*: the token goes beside it, as a textual-inversion embedding.
"""

import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from customdiff_core.delta import Factors
from customdiff_core.errors import DeltaError
from customdiff_core.interop import embeddings
from customdiff_core.interop.content import Rows

logger = logging.getLogger(__name__)

Changes = dict[str, Factors]


def of_one_rank(changes: Changes) -> Changes:
    """Fill every pair of factors up with zeros to the largest rank."""
    rank = max(right.shape[0] for _, right in changes.values())
    return {
        name: (pad(left, (0, rank - left.shape[1])), pad(right, (0, 0, 0, rank - right.shape[0])))
        for name, (left, right) in changes.items()
    }


def kohya(changes: Changes) -> dict[str, Tensor]:
    """Tensors under kohya's names; alpha is the rank, so that nothing is scaled."""
    tensors: dict[str, Tensor] = {}
    for name, (left, right) in changes.items():
        stem = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = right, left
        tensors[f"{stem}.alpha"] = torch.tensor(float(right.shape[0]))
    return tensors


def peft(changes: Changes) -> dict[str, Tensor]:
    """Tensors under PEFT's names, as diffusers writes them."""
    tensors: dict[str, Tensor] = {}
    for name, (left, right) in changes.items():
        stem = "unet." + name.removesuffix(".weight")
        tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = right, left
    return tensors


def write(path: Path, changes: Changes, left_out: list[str], tokens: dict[str, Rows], flavour: str) -> list[Path]:
    """Write a LoRA, "kohya" or "peft", and the tokens beside it.

    Raises:
        DeltaError: if there is no matrix to factor.
    """
    if not changes:
        raise DeltaError("LoRA: found no changed matrix, need one; a token alone is written as an embedding")
    if left_out:
        logger.warning("LoRA: %d changes are no matrices and are left out, such as %s", len(left_out), left_out[0])
    changes = of_one_rank(changes)
    tensors = kohya(changes) if flavour == "kohya" else peft(changes)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return [path, *(embeddings.write(path.parent, token, rows) for token, rows in tokens.items())]
