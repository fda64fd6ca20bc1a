"""The settings of each stage: frozen, typed, with units. What is here changes results and is part of every cache key;
what does not change a result (device, checkpoints, logging) is in `Runtime` alone."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


class Frozen(BaseModel):
    """A value: immutable, and a misspelt field is an error instead of a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RetrieveConfig(Frozen):
    """Regularization images by caption (arXiv:2212.04488, section 3.2)."""

    count: int = Field(default=200, ge=1, description="regularization images, exactly")
    candidates: int = Field(default=400, ge=1, description="hits asked of the index, before duplicates go")
    min_similarity: float | None = Field(
        default=None,
        description="least CLIP text cosine of caption and class prompt; the paper keeps > 0.85; empty: no limit",
    )


class AugmentConfig(Frozen):
    """The paper's augmentation of the concept's pictures (section 3.2 and appendix)."""

    resolution: int = Field(ge=16, description="S, side of a training image in pixels")
    views: int = Field(default=240, ge=1, description="augmented views made of the concept's pictures")
    resize_probability: float = Field(
        default=2 / 3, ge=0, le=1, description="chance of U{S/3..S}; otherwise U[1.2 S, 1.4 S)"
    )
    flip_probability: float = Field(default=0.5, ge=0, le=1, description="chance of a horizontal flip")
    seed: int = 0


class SampleConfig(Frozen):
    """How images are drawn from a model."""

    sampler: Literal["dpm-solver++", "ddim"] = "dpm-solver++"
    steps: int = Field(default=25, ge=1, le=1000, description="denoising steps")
    guidance_scale: float = Field(default=6.0, ge=1, description="classifier-free guidance")
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM's noise share; the paper's protocol uses 1")
    batch_size: int = Field(default=32, ge=1, description="images denoised together")


class FinetuneConfig(Frozen):
    """Custom Diffusion: cross-attention keys and values, and V* (section 3.1)."""

    method: Literal["custom-diffusion"] = "custom-diffusion"
    steps: int = Field(ge=1, description="optimizer steps")
    learning_rate: float = Field(gt=0, description="AdamW, for keys and values; constant")
    modifier_learning_rate: float = Field(gt=0, description="AdamW, for the row of V*")
    batch_size: int = Field(
        default=4, ge=1, description="concept views a step; as many regularization images join them"
    )
    prior_weight: float = Field(default=1.0, ge=0, description="weight of the prior-preservation loss")
    instance_weight: float = Field(
        default=4.0, gt=0, description="weight of the concept's loss; 4 is the released code's mask without channels"
    )
    weight_decay: float = Field(default=1e-2, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0, description="largest global gradient norm")
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="moving average of what is trained, whose result is kept; 0 keeps the last step's",
    )
    detach_bos: bool = Field(default=True, description="stop the key and value gradient at text position 0")
    precision: Precision = "fp32"
    seed: int = 0
    preview_prompts: tuple[str, ...] = Field(
        default=("photo of a {}",), description="drawn now and then while training"
    )
    preview_every: int = Field(default=100, ge=1, description="steps between previews")


class EvaluateConfig(Frozen):
    """Text alignment, image alignment and KID, with intervals (section 4)."""

    seeds: tuple[int, ...] = Field(default=tuple(range(8)), min_length=1, description="one image per prompt and seed")
    sample: SampleConfig = SampleConfig()
    kid_images: int = Field(
        default=300, ge=3, description="held-out captions of the category; one image is drawn for each"
    )
    kid_subset_size: int = Field(default=100, ge=2, description="torch-fidelity's subset size")
    kid_subsets: int = Field(default=100, ge=1, description="torch-fidelity's number of subsets")
    confidence: float = Field(default=0.95, gt=0, lt=1)


class IndexConfig(Frozen):
    """The embedded retrieval corpus: captioned scenes."""

    scenes: int = Field(default=10_000, ge=1, description="captioned scenes to render and embed")
    seed: int = 0


class Runtime(Frozen):
    """What a machine decides and no result depends on; never part of a key."""

    device: Device = "auto"
    checkpoint_every: int = Field(default=50, ge=1, description="steps between training checkpoints")
