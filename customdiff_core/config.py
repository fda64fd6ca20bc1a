"""The settings of each stage: frozen, typed, with units. What is here changes results and is part of every cache key;
what does not change a result (device, checkpoints, logging) is in `Runtime` alone."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from customdiff_core.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Regularization = Literal["retrieved", "generated", "none"]


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

    regularization: Regularization = Field(
        default="retrieved", description="real images; samples of the base model ('w/ gen'); or none ('w/o reg')"
    )
    count: int = Field(default=200, ge=1, description="regularization images, exactly")
    candidates: int = Field(default=400, ge=1, description="hits asked of the index at first, before duplicates go")
    deepest: int = Field(default=50_000, ge=1, description="most hits asked of the index, when links are dead")
    min_similarity: float | None = Field(
        default=None,
        description="least CLIP text cosine of caption and class prompt; the paper keeps > 0.85; empty: no limit",
    )
    min_side: int | None = Field(
        default=None,
        ge=1,
        description="least shorter side of a picture, in pixels: a smaller one teaches blur when it is scaled up; empty: no limit",
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


BUCKET_UNIT = 64  # pixels: an eighth of the resolution is a whole number of latents


class AugmentConfig(Frozen):
    """The paper's augmentation of the concept's pictures (section 3.2 and appendix)."""

    resolution: int = Field(
        ge=16,
        description="S, side of a training image in pixels; with aspect buckets, of the square of about equal area",
    )
    views: int = Field(default=240, ge=1, description="augmented views made of the concept's pictures")
    random_resize: bool = Field(
        default=True, description="the paper's random sizes with their words; without, every view is the whole picture"
    )
    resize_probability: float = Field(
        default=2 / 3, ge=0, le=1, description="chance of U{S/3..S}; otherwise U[1.2 S, 1.4 S)"
    )
    flip_probability: float = Field(default=0.5, ge=0, le=1, description="chance of a horizontal flip")
    aspect_buckets: bool = Field(
        default=False,
        description="train on a picture's own shape, cut to the nearest of a few of about equal area, instead of its middle "
        "square; a batch has one shape, and every regularization image is kept once in each that the pictures have",
    )
    flat_canvas: bool = Field(
        default=False,
        description="lay the far views of a picture whose border has one colour on a canvas of it, and count the loss there "
        "too; the paper's canvas is empty and does not count",
    )
    alpha_masks: bool = Field(
        default=False, description="count the loss only where a picture with an alpha channel is opaque"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _shapes_fit(self) -> "AugmentConfig":
        if self.aspect_buckets and self.resolution % BUCKET_UNIT:
            raise ValueError(
                f"augment.resolution: found {self.resolution} with aspect buckets, need a multiple of {BUCKET_UNIT}; "
                "correct it, or leave aspect_buckets off"
            )
        return self


class SampleConfig(Frozen):
    """How images are drawn from a model."""

    sampler: Literal["dpm-solver++", "ddim"] = "dpm-solver++"
    steps: int = Field(default=25, ge=1, le=1000, description="denoising steps")
    guidance_scale: float = Field(default=6.0, ge=1, description="classifier-free guidance")
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM's noise share; the paper's protocol uses 1")
    negative_prompt: str = Field(default="", description="what guidance leads away from")
    batch_size: int = Field(default=32, ge=1, description="images denoised together")
    precision: Precision = Field(
        default="fp32",
        description="in which the network computes; latents stay float32. bf16 is emulated where a processor or GPU (before "
        "Ampere) has none: slower than fp32",
    )


class EarlyStop(Frozen):
    """Stop when views that training does not see are learnt no better; the best weights are kept."""

    views: int = Field(default=8, ge=1, description="augmented views of each concept that are withheld from training")
    every: int = Field(default=50, ge=1, description="steps between two looks at them")
    patience: int = Field(default=3, ge=1, description="looks without a better loss, after which training stops")


class FinetuneConfig(Frozen):
    """How a method is trained (section 3.1 and appendix); which method it is, `finetuning/methods` says."""

    method: str = Field(default="custom-diffusion", description="one of finetuning/methods")
    steps: int = Field(
        ge=1, description="optimizer steps for each concept: two together have twice as many (the paper: 250, and 500)"
    )
    learning_rate: float | None = Field(
        default=None, gt=0, description="AdamW, for the UNet's weights; empty: by the method's rule"
    )
    modifier_learning_rate: float | None = Field(
        default=None, gt=0, description="AdamW, for the row of V*; empty: as for the weights"
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="the rates over the steps; the paper's are constant, cosine ends at 0"
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps over which the rates grow to their values")
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        default="adamw", description="adamw-8bit keeps its state in 8 bits (bitsandbytes; CUDA only)"
    )
    batch_size: int = Field(
        default=4, ge=1, description="concept views a batch; as many regularization images join them"
    )
    gradient_accumulation: int = Field(default=1, ge=1, description="batches a step; their gradients are averaged")
    prior_weight: float = Field(
        default=1.0, ge=0, description="weight of the prior-preservation loss; 0 uses no regularization images"
    )
    instance_weight: float = Field(
        default=4.0,
        gt=0,
        description="weight of the concept's loss. The released code divides it by a mask of one channel while the error "
        "has four, which is 4 : 1 against the prior; the published figures used that",
    )
    min_snr_gamma: float | None = Field(
        default=None,
        gt=0,
        description="cap on a timestep's signal-to-noise weight (arXiv:2303.09556; 5 there); empty: off",
    )
    noise_offset: float = Field(
        default=0.0, ge=0, description="noise that is constant over a channel, for darker darks (0.1 is common)"
    )
    weight_decay: float = Field(default=1e-2, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0, description="largest global gradient norm")
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="moving average of what is trained, whose result is kept; 0 keeps the last step's",
    )
    detach_bos: bool = Field(
        default=True,
        description="stop the key and value gradient at text position 0, which is the same for every prompt: through it a "
        "change would reach all of them. The released code does",
    )
    early_stop: EarlyStop | None = Field(default=None, description="stop before the last step; empty: never")
    precision: Precision = "fp32"
    compiled: bool = Field(
        default=False,
        description="train through torch.compile: minutes before the first step, then faster ones, and other last digits",
    )
    seed: int = 0
    preview_prompts: tuple[str, ...] = Field(
        default=("photo of a {}",), min_length=1, description="drawn now and then while training"
    )
    preview_every: int = Field(default=100, ge=1, description="steps between previews")


class MethodSettings(Frozen):
    """What a profile states for one method; empty fields follow the method's own rule."""

    steps: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    modifier_learning_rate: float | None = Field(default=None, gt=0)


class MergeConfig(Frozen):
    """The closed-form merge (section 3.2)."""

    captions: int = Field(
        default=1000, ge=1, description="regularization captions, spread evenly over the retrieval index's"
    )
    prompts: tuple[str, ...] = Field(
        default=("{}", "photo of a {}"), min_length=1, description="target prompts of every concept"
    )
    shared: float = Field(
        default=1e-3, gt=0, lt=1, description="relative distance below which two concepts' text features are the same"
    )
    independence: float = Field(
        default=1e-3, gt=0, lt=1, description="least share of a text feature that the others must not explain"
    )
    ridge: float = Field(
        default=0.0,
        ge=0,
        description="how much the weights are held where the captions say nothing; 0 is the paper's objective",
    )
    factored: bool = Field(
        default=False,
        description="keep the result as two thin factors a layer: the same model in a hundredth of the size",
    )


class CompressConfig(Frozen):
    """How much of each layer's change is kept; exactly one of the three is stated."""

    energy: float | None = Field(
        default=None, gt=0, le=1, description="fraction of the sum of singular values; the released code keeps 0.6"
    )
    rank: int | None = Field(default=None, ge=1, description="singular values of every layer")
    megabytes: float | None = Field(
        default=None, gt=0, description="size of the file (10^6 bytes), by the largest energy that fits"
    )


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


class Stated(Frozen):
    """What the user says of an imported file that does not say it: each token's name and category, in the file's order.

    Of a file without tokens: the rare word that stands for the concept in prompts.
    """

    tokens: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    def shared_by(self, files: int) -> "list[Stated]":
        """What is said of each of several files, in their order: all of the only one, else one name and category each.

        Raises:
            ConfigError: if several files were given and not one for each.
        """
        if files == 1:
            return [self]
        for what, stated in (("tokens", self.tokens), ("categories", self.categories)):
            if stated and len(stated) != files:
                raise ConfigError(
                    f"imported {what}: found {len(stated)} ({', '.join(stated)}) for {files} files, need one for each file in "
                    "their order; import a file of several concepts on its own first, and give its key"
                )
        return [
            Stated(tokens=self.tokens[number : number + 1], categories=self.categories[number : number + 1])
            for number in range(files)
        ]


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
    keep_checkpoints: bool = Field(
        default=True, description="after a training's end, so that more steps go on from them"
    )
    purpose: str = Field(
        default="", description="what a training is for, in its label; where it is said, no concept's name means it"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="compute the UNet's activations twice instead of keeping them: less memory, more time",
    )
    connections: int = Field(default=32, ge=1, description="links fetched at a time")
    per_host: int = Field(default=4, ge=1, description="of them, from one host")
