"""The real architectures of Stable Diffusion 1, 2 and XL: at full size without memory, and scaled down with random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from customdiff_core.profiles import Profile

STABLE_DIFFUSION_1: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "layers_per_block": 2,
}
STABLE_DIFFUSION_2: dict[str, Any] = STABLE_DIFFUSION_1 | {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "sample_size": 96,
}
STABLE_DIFFUSION_XL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}


def at_full_size(config: dict[str, Any]) -> UNet2DConditionModel:
    """A UNet whose weights have shapes and no values."""
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def stable_diffusion_2(folder: Path, openmoji: Profile) -> Profile:
    """2.1's UNet and scheduler (v-prediction, linear projections, heads by block) with a text encoder like OpenCLIP's."""
    config = STABLE_DIFFUSION_2 | {
        "block_out_channels": (16, 32, 32, 32),
        "attention_head_dim": [2, 4, 4, 4],
        "cross_attention_dim": 24,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 16,
    }
    _write(folder, openmoji, config, prediction_type="v_prediction")
    _text_encoder(folder / "text_encoder", CLIPTextModel, openmoji, hidden_size=24, hidden_act="gelu")
    return _profile(folder, openmoji)


def stable_diffusion_xl(folder: Path, openmoji: Profile) -> Profile:
    """XL's UNet (sizes and pooled text beside, several transformer layers a block) with its two text encoders."""
    config = STABLE_DIFFUSION_XL | {
        "block_out_channels": (16, 32, 32),
        "attention_head_dim": [2, 4, 4],
        "transformer_layers_per_block": [1, 1, 2],
        "layers_per_block": 1,
        "cross_attention_dim": 24 + 32,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
        "norm_num_groups": 8,
        "sample_size": 16,
    }
    _write(folder, openmoji, config, prediction_type="epsilon")
    assert openmoji.model.path is not None
    shutil.copytree(openmoji.model.path / "tokenizer", folder / "tokenizer_2")
    tokenizer = json.loads((folder / "tokenizer_2" / "tokenizer_config.json").read_text())
    (folder / "tokenizer_2" / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"pad_token": "!"}))
    special = json.loads((folder / "tokenizer_2" / "special_tokens_map.json").read_text())
    (folder / "tokenizer_2" / "special_tokens_map.json").write_text(json.dumps(special | {"pad_token": "!"}))
    first = {"hidden_size": 24, "hidden_act": "quick_gelu"}
    _text_encoder(folder / "text_encoder", CLIPTextModel, openmoji, **first)
    second = {"hidden_size": 32, "hidden_act": "gelu", "projection_dim": 20}
    _text_encoder(folder / "text_encoder_2", CLIPTextModelWithProjection, openmoji, **second)
    return _profile(folder, openmoji)


def _write(folder: Path, openmoji: Profile, config: dict[str, Any], prediction_type: str) -> None:
    """UNet, VAE (a quarter of the side), schedule and the embedded tokenizer."""
    torch.manual_seed(0)
    assert openmoji.model.path is not None
    UNet2DConditionModel(**config).save_pretrained(folder / "unet")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    AutoencoderKL(block_out_channels=(8, 8, 8), norm_num_groups=4, **blocks).save_pretrained(folder / "vae")
    DDIMScheduler(
        prediction_type=prediction_type,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    shutil.copytree(openmoji.model.path / "tokenizer", folder / "tokenizer")


def _text_encoder(folder: Path, kind: Any, openmoji: Profile, **config: Any) -> None:
    """A small encoder of the embedded tokenizer's words and length, whose config says eos_token_id 2, as Stable Diffusion 1's
    and XL's do: the libraries pool at argmax."""
    assert openmoji.model.path is not None
    embedded = CLIPTextConfig.from_pretrained(openmoji.model.path / "text_encoder")
    words = {"vocab_size": embedded.vocab_size, "max_position_embeddings": embedded.max_position_embeddings}
    base = {"intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    settings = CLIPTextConfig(**base, **words, **config, eos_token_id=2)
    kind(settings).save_pretrained(folder)


def _profile(folder: Path, openmoji: Profile) -> Profile:
    return openmoji.model_copy(update={"model": openmoji.model.model_copy(update={"path": folder})})
