"""CompVis' names of Stable Diffusion's weights, from the UNet's and VAE's structure.

down_blocks.1.attentions.0  <->  input_blocks.4.1          (three entries a block: two layers and the downsampler)
"""

from collections.abc import Mapping, Sequence
from typing import Any

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."

RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
VAE_ATTENTION = (
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
    ("query", "q"),  # as older files call them, those of Stable Diffusion 1 on the hub among them
    ("key", "k"),
    ("value", "v"),
    ("proj_attn", "proj_out"),
)
ATTENTION = "CrossAttn"  # in the type of a block that has it
Pairs = list[tuple[str, str]]


def unet_prefixes(config: Mapping[str, Any]) -> Pairs:
    """Pairs of prefixes, diffusers' and CompVis', that cover every weight of a UNet.

    Attention has its pair only where a block has attention: elsewhere the upsampler stands in its place.
    """
    down, up = config["down_block_types"], config["up_block_types"]
    stated = config["layers_per_block"]
    layers = [int(stated)] * len(down) if isinstance(stated, int) else [int(count) for count in stated]
    pairs: Pairs = [
        ("conv_in.", "input_blocks.0.0."),
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("add_embedding.linear_1.", "label_emb.0.0."),
        ("add_embedding.linear_2.", "label_emb.0.2."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
        ("mid_block.attentions.0.", "middle_block.1."),
        *_resnet("mid_block.resnets.0.", "middle_block.0."),
        *_resnet("mid_block.resnets.1.", "middle_block.2."),
    ]
    first = 1
    for block, (kind, count) in enumerate(zip(down, layers, strict=True)):
        for layer in range(count):
            pairs += _resnet(f"down_blocks.{block}.resnets.{layer}.", f"input_blocks.{first + layer}.0.")
            if ATTENTION in kind:
                pairs.append((f"down_blocks.{block}.attentions.{layer}.", f"input_blocks.{first + layer}.1."))
        pairs.append((f"down_blocks.{block}.downsamplers.0.conv.", f"input_blocks.{first + count}.0.op."))
        first += count + 1
    first = 0
    for block, (kind, count) in enumerate(zip(up, reversed(layers), strict=True)):
        for layer in range(count + 1):
            pairs += _resnet(f"up_blocks.{block}.resnets.{layer}.", f"output_blocks.{first + layer}.0.")
            if ATTENTION in kind:
                pairs.append((f"up_blocks.{block}.attentions.{layer}.", f"output_blocks.{first + layer}.1."))
        place = 2 if ATTENTION in kind else 1
        pairs.append((f"up_blocks.{block}.upsamplers.0.conv.", f"output_blocks.{first + count}.{place}.conv."))
        first += count + 1
    return pairs


def vae_prefixes(config: Mapping[str, Any]) -> Pairs:
    """Pairs of prefixes, diffusers' and CompVis', that cover every weight of a VAE."""
    blocks, layers = len(config["block_out_channels"]), int(config["layers_per_block"])
    pairs: Pairs = []
    for side, more in (("encoder", 0), ("decoder", 1)):
        for number in range(blocks):
            theirs = f"{side}.down.{number}" if side == "encoder" else f"{side}.up.{blocks - 1 - number}"
            ours = f"{side}.{'down' if side == 'encoder' else 'up'}_blocks.{number}"
            for layer in range(layers + more):
                pairs.append((f"{ours}.resnets.{layer}.conv_shortcut.", f"{theirs}.block.{layer}.nin_shortcut."))
                pairs.append((f"{ours}.resnets.{layer}.", f"{theirs}.block.{layer}."))
            pairs.append((f"{ours}.downsamplers.0.", f"{theirs}.downsample."))
            pairs.append((f"{ours}.upsamplers.0.", f"{theirs}.upsample."))
        pairs += [(f"{side}.mid_block.resnets.{layer}.", f"{side}.mid.block_{layer + 1}.") for layer in (0, 1)]
        pairs += [(f"{side}.mid_block.attentions.0.{a}.", f"{side}.mid.attn_1.{b}.") for a, b in VAE_ATTENTION]
        pairs.append((f"{side}.conv_norm_out.", f"{side}.norm_out."))
    return pairs


def renamed(name: str, pairs: Sequence[tuple[str, str]], *, back: bool = False) -> str | None:
    """Replace a name's prefix by its partner; None if no prefix fits. `back` goes from CompVis' to diffusers'."""
    for ours, theirs in pairs:
        before, after = (theirs, ours) if back else (ours, theirs)
        if name.startswith(before):
            return after + name[len(before) :]
    return None


def _resnet(ours: str, theirs: str) -> Pairs:
    return [(f"{ours}{a}.", f"{theirs}{b}.") for a, b in RESNET]
