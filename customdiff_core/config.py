"""The settings of each stage: frozen, typed, with units. What is here changes results and is part of every cache key;
what does not change a result (device, checkpoints, logging) is in `Runtime` alone."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


class Frozen(BaseModel):
    """A value: immutable, and a misspelt field is an error instead of a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FetchConfig(Frozen):
    """What one link is allowed to cost, and when a round of them is enough."""

    fetcher: Literal["pool", "img2dataset"] = Field(
        default="pool", description="pool: guarded, for some hundreds; img2dataset: for tens of thousands, unguarded"
    )
    deadline_s: float = Field(default=10.0, gt=0, description="seconds for one try of a link, redirects included")
    silence_s: float = Field(default=3.0, gt=0, description="seconds without a byte after which a try is given up")
    max_bytes: int = Field(default=10 * 1024**2, ge=1, description="largest file")
    max_pixels: int = Field(default=40_000_000, ge=1, description="largest picture, width x height")
    redirects: int = Field(default=5, ge=0, description="most redirects of one link")
    retries: int = Field(default=1, ge=0, description="further tries after what may pass, such as 503")
    opt_out: bool = Field(
        default=True, description="honour X-Robots-Tag: noai, noimageai, noindex, noimageindex, as img2dataset does"
    )
    survival: float = Field(default=0.6, gt=0, le=1, description="share of links expected to give a picture, at first")
    rounds: int = Field(default=12, ge=1, description="most rounds of fetching")


class BackendConfig(Frozen):
    """What is asked of a `clip-retrieval back`; its filters run there, on its own embeddings, before this project's."""

    index_name: str = Field(default="", description="one of its indices; empty: its first")
    modality: Literal["text", "image"] = Field(default="text", description="text searches captions, image pictures")
    deduplicate: bool = Field(
        default=False, description="its 0.94-cosine duplicates, which chain: a like b like c drops c; ours do not"
    )
    safety_model: bool = Field(default=False, description="its NSFW classifier, where it was started with one")
    violence_detector: bool = Field(default=False, description="its violence prompts, where it was started with them")


class RetrieveConfig(Frozen):
    """Regularization images by caption (arXiv:2212.04488, section 3.2), or the alternatives of the paper's ablation."""

    regularization: Literal["retrieved", "generated", "none"] = Field(
        default="retrieved", description="real images; samples of the base model ('w/ gen'); or none ('w/o reg')"
    )
    count: int = Field(default=200, ge=1, description="regularization images, exactly")
    candidates: int = Field(default=400, ge=1, description="hits asked of the index at first, before duplicates go")
    deepest: int = Field(default=50_000, ge=1, description="most hits asked of the index, when links are dead")
    min_similarity: float | None = Field(
        default=None,
        description="least CLIP text cosine of caption and class prompt; the paper keeps > 0.85; empty: no limit",
    )
    near_hash: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="most bits of the perceptual hash that near-duplicates differ in; empty: off",
    )
    near_similarity: float = Field(
        default=0.95, ge=-1, le=1, description="least CLIP image cosine of near-duplicates, beside the hash"
    )
    max_nsfw: float = Field(default=0.5, ge=0, description="largest NSFW score where the index has one")
    max_watermark: float = Field(default=0.8, ge=0, description="largest watermark score where the index has one")
    nprobe: int | None = Field(default=None, ge=1, description="cells searched of an IVF index; empty: by its size")
    fetch: FetchConfig = FetchConfig()
    backend: BackendConfig = BackendConfig()


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
    bootstrap: int = Field(default=2000, ge=100, description="resamples of prompts and seeds for an interval")
    confidence: float = Field(default=0.95, gt=0, lt=1)


class IndexConfig(Frozen):
    """The embedded retrieval corpus: captioned scenes."""

    scenes: int = Field(default=10_000, ge=1, description="captioned scenes to render and embed")
    seed: int = 0


class BuildConfig(Frozen):
    """An index folder of one's own captioned images (docs/bring-your-own-laion.md)."""

    kind: Literal["urls", "folder", "embeddings"] = Field(
        description="urls: Parquet of links and captions; folder: name.jpg beside name.txt; embeddings: ready .npy"
    )
    captions_only: bool = Field(
        default=False, description="urls: index the captions and download nothing; links are then tried when retrieved"
    )
    shard: int = Field(default=10_000, ge=1, description="rows of one part: what a crash costs")
    memory: str = Field(default="4G", pattern=r"^\d+(\.\d+)?[KMGT]$", description="largest size of an index")
    index_key: str | None = Field(default=None, description="a FAISS factory string; empty: by number and memory")
    image_size: int = Field(default=256, ge=32, description="shorter side of a downloaded image, in pixels")
    fetch: FetchConfig = FetchConfig(fetcher="img2dataset")


class Runtime(Frozen):
    """What a machine decides and no result depends on; never part of a key."""

    device: Device = "auto"
    checkpoint_every: int = Field(default=50, ge=1, description="steps between training checkpoints")
    connections: int = Field(default=32, ge=1, description="links fetched at a time")
    per_host: int = Field(default=4, ge=1, description="of them, from one host")
