"""The recipe of each pretraining stage: what its result depends on, and therefore what it is cached by. No torch."""

from pathlib import Path

from customdiff_core.artifacts import Artifact
from customdiff_core.config import SampleConfig
from customdiff_core.pretraining.config import (
    ClipConfig,
    DinoConfig,
    TokenizerConfig,
    UNetConfig,
    VaeConfig,
    WorldConfig,
)
from customdiff_core.profiles import EncoderSource, ModelSource
from customdiff_core.recipes import (
    CLIP_LIBRARIES,
    DRAWING_LIBRARIES,
    TENSOR_LIBRARIES,
    Recipe,
    digest_of,
    fingerprint,
    settings,
    versions,
    world_digest,
)
from customdiff_core.weights import encoder_digest, file_digest, model_digest

HERE = "customdiff_core.pretraining"


def scenes(config: WorldConfig) -> Recipe:
    """The table of drawings, the project's own drawings, and how scenes are composed."""
    return Recipe(
        kind="scenes",
        inputs={"drawings": world_digest()},
        config=settings(config),
        code=fingerprint(f"{HERE}.corpus"),
        versions=versions("numpy", *DRAWING_LIBRARIES),
    )


def tokenizer(scenes: Artifact, config: TokenizerConfig) -> Recipe:
    """The captions."""
    return Recipe(
        kind="tokenizer",
        inputs={"scenes": scenes.sha256},
        config=settings(config),
        code=fingerprint(f"{HERE}.tokenizer"),
        versions=versions("tokenizers", "transformers"),
    )


def clip(scenes: Artifact, words: Artifact, config: ClipConfig, start: Artifact | None = None) -> Recipe:
    """Scenes, tokenizer, the model's shape and its training, and the weights that it goes on from."""
    return Recipe(
        kind="clip",
        inputs={"scenes": scenes.sha256, "tokenizer": words.sha256, "start": start.sha256 if start else ""},
        config=settings(config),
        code=fingerprint(f"{HERE}.clip"),
        versions=versions(*CLIP_LIBRARIES, *TENSOR_LIBRARIES),
    )


def vae(scenes: Artifact, config: VaeConfig, start: Artifact | None = None) -> Recipe:
    """Scenes, the model's shape and its training."""
    return Recipe(
        kind="vae",
        inputs={"scenes": scenes.sha256, "start": start.sha256 if start else ""},
        config=settings(config),
        code=fingerprint(f"{HERE}.vae"),
        versions=versions(*TENSOR_LIBRARIES),
    )


def latents(scenes: Artifact, autoencoder: Artifact) -> Recipe:
    """Every picture through the VAE, once."""
    return Recipe(
        kind="scene_latents",
        inputs={"scenes": scenes.sha256, "vae": autoencoder.sha256},
        config={},
        code=fingerprint(f"{HERE}.encoded"),
        versions=versions(*TENSOR_LIBRARIES),
    )


def features(scenes: Artifact, words: Artifact, text: Artifact) -> Recipe:
    """Every caption through the text encoder, once."""
    return Recipe(
        kind="caption_features",
        inputs={"scenes": scenes.sha256, "tokenizer": words.sha256, "clip": text.sha256},
        config={},
        code=fingerprint(f"{HERE}.encoded"),
        versions=versions(*TENSOR_LIBRARIES),
    )


def unet(latents: Artifact, features: Artifact, config: UNetConfig, start: Artifact | None = None) -> Recipe:
    """Latents and text features, the model's shape and its training."""
    return Recipe(
        kind="unet",
        inputs={
            "scene_latents": latents.sha256,
            "caption_features": features.sha256,
            "start": start.sha256 if start else "",
        },
        config=settings(config),
        code=fingerprint(f"{HERE}.unet"),
        versions=versions(*TENSOR_LIBRARIES),
    )


def dino(scenes: Artifact, config: DinoConfig) -> Recipe:
    """Scenes without their captions, the model's shape and its training."""
    return Recipe(
        kind="dino",
        inputs={"scenes": scenes.sha256},
        config=settings(config),
        code=fingerprint(f"{HERE}.dino"),
        versions=versions(*TENSOR_LIBRARIES),
    )


def adopted(part: str, folder: Path) -> Recipe:
    """A part of a base model that was made elsewhere, named by its content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = [[path.relative_to(folder).as_posix(), file_digest(path)] for path in files]
    return Recipe(
        kind=part, inputs={"adopted": digest_of(content)}, config={}, code=fingerprint(f"{HERE}.assemble"), versions={}
    )


def base_model(parts: dict[str, Artifact]) -> Recipe:
    """Every part, laid out as other libraries open it."""
    return Recipe(
        kind="base_model",
        inputs={name: artifact.sha256 for name, artifact in parts.items()},
        config={},
        code=fingerprint(f"{HERE}.assemble"),
        versions=versions("diffusers", "transformers", *CLIP_LIBRARIES),
    )


def base_model_figures(
    models: dict[str, ModelSource], judge: EncoderSource, sample: SampleConfig, count: int
) -> Recipe:
    """The models, the judge, the scenes, and how pictures are drawn."""
    return Recipe(
        kind="base_model_figures",
        inputs={name: model_digest(source) for name, source in models.items()}
        | {"judge": encoder_digest(judge), "drawings": world_digest()},
        config=settings(sample) | {"count": count},
        code=fingerprint(f"{HERE}.validation"),
        versions=versions("torch-fidelity", *CLIP_LIBRARIES, *TENSOR_LIBRARIES, *DRAWING_LIBRARIES),
    )
