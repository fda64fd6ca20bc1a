"""Open a base model's parts: safetensors only, frozen, float32.

Which kind of Stable Diffusion it is, is read from the UNet's config and the noise schedule, never from a name: one text
encoder or two, what the UNet reads beside them, what it predicts.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from customdiff_core.config import Precision
from customdiff_core.devices import DTYPES
from customdiff_core.errors import WeightsError
from customdiff_core.profiles import ModelSource
from customdiff_core.weights import encoder_names, model_digest, model_folder, weights_files, zero_when_empty

# diffusers annotates configs as dicts, results as tuples and `.to` as taking none: its objects are untyped here.
Network = Any
Schedule = Any

SMALL_MAP = 1024  # positions of a latent up to which plain attention's maps are no burden


@dataclass(frozen=True)
class Condition:
    """What the UNet reads of B prompts: `features` (B, L, D) and, in SDXL, `pooled` (B, P)."""

    features: torch.Tensor
    pooled: torch.Tensor | None = None

    def take(self, rows: torch.Tensor) -> "Condition":
        """Pick rows (B',); not by indexing, whose gradient adds in whatever order the threads come."""
        picked = rows.to(self.features.device)
        pooled = None if self.pooled is None else self.pooled.index_select(0, picked)
        return Condition(self.features.index_select(0, picked), pooled)

    def like(self, other: "Condition") -> "Condition":
        """Move and cast to where another one is."""
        pooled = None if self.pooled is None else self.pooled.to(other.features)
        return Condition(self.features.to(other.features), pooled)

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """Join batches."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Condition(torch.cat([part.features for part in parts]), torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder and its tokenizer; `name` is its folder in a diffusers pipeline."""

    name: str
    network: Network
    tokenizer: CLIPTokenizer


@dataclass
class Components:
    """The parts of a latent diffusion model that training and sampling share; `digest` says which model it is.

    `pixels_per_latent` is the VAE's; `zero_when_empty` says that the empty prompt reads as zeros (SDXL).
    """

    unet: Network
    encoders: tuple[TextEncoder, ...]
    noise_scheduler: Schedule
    digest: str
    pixels_per_latent: int = 8
    zero_when_empty: bool = False

    @property
    def text_encoder(self) -> Network:
        """The first text encoder, which every model has."""
        return self.encoders[0].network

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first text encoder's tokenizer."""
        return self.encoders[0].tokenizer

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.device

    def to(self, device: torch.device) -> "Components":
        """Move the networks."""
        self.unet.to(device)
        for encoder in self.encoders:
            encoder.network.to(device)
        return self

    def predict(self, latents: torch.Tensor, steps: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Ask the UNet about noisy latents (B, 4, h, w); SDXL is also told a size, that of an uncropped picture."""
        if condition.pooled is None:
            return self.unet(latents, steps, condition.features).sample
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=latents.device, dtype=latents.dtype)
        extra = {"text_embeds": condition.pooled, "time_ids": sizes.expand(len(latents), -1)}
        return self.unet(latents, steps, condition.features, added_cond_kwargs=extra).sample


def load_components(source: ModelSource) -> Components:
    """Load UNet, text encoders with their tokenizers, and noise schedule, frozen and in evaluation mode.

    Raises:
        WeightsError: if the folder is incomplete or pickled.
    """
    folder = model_folder(source)
    unet: Network = UNet2DConditionModel.from_pretrained(
        folder, subfolder="unet", torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    vae_config: Any = AutoencoderKL.load_config(folder, subfolder="vae", local_files_only=True)
    encoders = load_encoders(source)
    return Components(
        unet=unet.requires_grad_(False).eval(),
        encoders=encoders,
        noise_scheduler=scheduler,
        digest=model_digest(source),
        pixels_per_latent=2 ** (len(vae_config["block_out_channels"]) - 1),
        zero_when_empty=zero_when_empty(folder),
    )


def attend_plainly(unet: Network, precision: Precision, positions: int) -> None:
    """Train with plain attention where that is quicker: on a CPU in bf16, whose fused kernel is slow backwards.

    It keeps its maps, which are as large as the square of `positions` (of a latent, h x w): only small ones are worth it.
    """
    if unet.device.type == "cpu" and precision == "bf16" and positions <= SMALL_MAP:
        unet.set_attn_processor(AttnProcessor())


def hold_frozen(unet: Network, precision: Precision, but: Collection[str] = ()) -> None:
    """Hold the frozen matrices in the precision that they are multiplied in: half the memory, and not cast at every call.

    The same numbers come out to the bit; norms and what is trained stay in float32, and `but`, names of parameters.
    """
    for name, module in unet.named_modules():
        for own, parameter in module.named_parameters(name, recurse=False):
            frozen = not parameter.requires_grad and own not in but
            if frozen and isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                parameter.data = parameter.data.to(DTYPES[precision])


def load_encoders(source: ModelSource) -> tuple[TextEncoder, ...]:
    """Load the text encoders alone, frozen and in evaluation mode; the second of two has a projection."""
    folder = model_folder(source)
    kinds: tuple[Any, ...] = (CLIPTextModel, CLIPTextModelWithProjection)
    encoders: list[TextEncoder] = []
    for kind, (name, tokenizer) in zip(kinds, load_tokenizers(source).items(), strict=False):
        network: Network = kind.from_pretrained(
            folder, subfolder=name, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        encoders.append(TextEncoder(name, network.requires_grad_(False).eval(), tokenizer))
    return tuple(encoders)


def load_tokenizers(source: ModelSource) -> dict[str, CLIPTokenizer]:
    """Load the tokenizers alone, by their text encoder's name."""
    folder = model_folder(source)
    return {
        name: CLIPTokenizer.from_pretrained(folder, subfolder=tokenizer, local_files_only=True)
        for name, tokenizer in encoder_names(folder)
    }


def embedding_widths(source: ModelSource) -> dict[str, int]:
    """The width of each text encoder's token embedding, by its name, without loading it."""
    folder = model_folder(source)
    configs: dict[str, Any] = {
        name: CLIPTextConfig.from_pretrained(folder, subfolder=name, local_files_only=True)
        for name, _ in encoder_names(folder)
    }
    return {name: int(config.hidden_size) for name, config in configs.items()}


def unet_names(source: ModelSource) -> set[str]:
    """The names of the UNet's weights, without reading them."""
    found: set[str] = set()
    for path in weights_files(model_folder(source) / "unet"):
        with safe_open(path, framework="pt") as file:
            found.update(file.keys())
    return found


def load_unet_weights(source: ModelSource, endings: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Read those of the UNet's weights whose names end so, in float32, without building the UNet.

    Raises:
        WeightsError: if there is none.
    """
    folder = model_folder(source) / "unet"
    found: dict[str, torch.Tensor] = {}
    for path in weights_files(folder):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name).float() for name in file.keys() if name.endswith(endings)}  # noqa: SIM118
    if not found:
        raise WeightsError(f"{folder}: found no weights named *{endings[0]}, need a UNet with cross-attention")
    return found


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
