"""Open a base model's parts: safetensors only, frozen, float32."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers import CLIPTextModel, CLIPTokenizer

from customdiff_core.profiles import ModelSource
from customdiff_core.weights import model_digest, model_folder

# diffusers annotates configs as dicts, results as tuples and `.to` as taking none: its objects are untyped here.
Network = Any
Schedule = Any


@dataclass
class Components:
    """The parts of a latent diffusion model that training and sampling share; `digest` says which model it is."""

    unet: Network
    text_encoder: Network
    tokenizer: CLIPTokenizer
    noise_scheduler: Schedule
    digest: str

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.device

    def to(self, device: torch.device) -> "Components":
        """Move the networks."""
        self.unet.to(device)
        self.text_encoder.to(device)
        return self


def load_components(source: ModelSource) -> Components:
    """Load UNet, text encoder, tokenizer and noise schedule, frozen and in evaluation mode.

    Raises:
        WeightsError: if the folder is incomplete or pickled.
    """
    folder = model_folder(source)
    unet: Network = UNet2DConditionModel.from_pretrained(
        folder, subfolder="unet", torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    text_encoder: Network = CLIPTextModel.from_pretrained(
        folder, subfolder="text_encoder", torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    unet.requires_grad_(False).eval()
    text_encoder.requires_grad_(False).eval()
    return Components(unet, text_encoder, tokenizer, scheduler, model_digest(source))


def load_vae(source: ModelSource) -> Network:
    """Load the VAE, frozen and in evaluation mode."""
    vae: Network = AutoencoderKL.from_pretrained(
        model_folder(source), subfolder="vae", torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return vae.requires_grad_(False).eval()


def latent_scale(source: ModelSource) -> float:
    """The VAE's scaling factor, without loading its weights."""
    config: Any = AutoencoderKL.load_config(model_folder(source), subfolder="vae", local_files_only=True)
    return float(config.get("scaling_factor", 0.18215))
