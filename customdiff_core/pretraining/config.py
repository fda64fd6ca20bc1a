"""What the embedded base model is made of, and how long each part trains."""

from typing import Literal

from pydantic import Field, PositiveFloat

from customdiff_core.config import Frozen, Precision, SampleConfig
from customdiff_core.processor import native_precision
from customdiff_core.world.odds import Odds


class TrainConfig(Frozen):
    """How one part is trained: AdamW, linear warm-up, cosine to a twentieth, gradient norm 1, an average of the weights."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    learning_rate: float = Field(gt=0, description="peak, per step")
    warmup: int = Field(default=100, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(default=0.01, ge=0)
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="of the moving average, which is what is kept")
    precision: Precision = Field(default_factory=native_precision, description="bf16 where the processor has it")
    seed: int = 0


class WorldConfig(Frozen):
    """The captioned scenes that everything is trained on. They come in families whose members differ in one thing."""

    scenes: int = Field(default=50_000, ge=8, multiple_of=8, description="scenes to train on")
    held_out: int = Field(default=2_000, ge=8, multiple_of=8, description="scenes that are only ever measured on")
    size: int = Field(default=64, ge=32, description="pixels a side")
    boost: dict[str, PositiveFloat] = Field(
        default={}, description="factors on how often things of a category are in the scenes to train on"
    )
    odds: Odds = Field(default=Odds(), description="how often scenes to train on are of which kind")
    twins: bool = Field(
        default=False, description="each scene to train on once more, its things in other surroundings, sizes and poses"
    )
    seed: int = 0


class TokenizerConfig(Frozen):
    """Byte-level byte-pair encoding in CLIP's files."""

    vocabulary: int = Field(default=1_100, ge=600, description="tokens, special and rare ones included")
    length: int = Field(default=28, ge=8, description="tokens of a prompt, beginning and end included")


class ClipConfig(TrainConfig):
    """A contrastive model of pictures and captions (open_clip's CLIP)."""

    embed_dim: int = 192
    text_width: int = 192
    text_layers: int = 3
    text_heads: int = 6
    vision: str = Field(default="test_resnet", description="\"resnet\" is CLIP's own, all else a name of timm's")
    vision_width: int = Field(default=20, description="of CLIP's own")
    vision_layers: int = Field(default=1, description="bottlenecks in each of its four stages")
    naming: float = Field(default=1.0, ge=0, description="weight of naming categories and colours beside the contrast")
    naming_parts: bool = Field(
        default=False, description="name a thing's main and second colour, not only which it has: where each of them is"
    )
    uncoloured: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of families told without their things' colours: a cat of any is a cat",
    )
    noise: float = Field(default=0.0, ge=0, description="largest deviation of noise on the pictures, of 0..1")
    wobble: float = Field(
        default=0.0, ge=0, description="largest deviation by which lines are bent, pixels: a crooked cat is a cat"
    )
    identity: float = Field(
        default=0.0,
        ge=0,
        description="weight of telling pictures from pictures by their things: the same ones near each other wherever they are, "
        "like ones in another paint far; for scenes with twins",
    )
    largest_scale: float = Field(
        default=100.0, gt=1, description="of the logits (CLIP's 100); the lower, the farther its cosines must lie apart"
    )


class VaeConfig(TrainConfig):
    """The autoencoder (diffusers' AutoencoderKL); each level after the first halves the picture."""

    channels: tuple[int, ...] = (32, 64, 96)
    layers: int = 1
    latent_channels: int = 6
    crop: int = Field(default=32, description="pixels a side of what it trains on")
    kl_weight: float = Field(default=1e-4, description="of KL(q || N(0, 1)) per latent value")
    gradient_weight: float = Field(default=1.0, description="of the difference of neighbouring pixels: keeps outlines")
    chroma_weight: float = Field(default=0.0, description="of the difference in colour alone: keeps it on small parts")
    encoder_frozen: bool = Field(default=False, description="train the decoder alone: latents stay those of a UNet")


class UNetConfig(TrainConfig):
    """The denoiser (diffusers' UNet2DConditionModel)."""

    channels: tuple[int, ...] = (64, 128, 160)
    layers: tuple[int, ...] = Field(
        default=(2, 1, 1), description="of each level, one more on the way up; a start with fewer is deepened"
    )
    heads: tuple[int, ...] = (2, 4, 5)
    attention_down: tuple[bool, ...] = (False, True, True)
    attention_up: tuple[bool, ...] = (True, True, True)
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    min_snr_gamma: float = Field(default=5.0, gt=0, description="arXiv:2303.09556")
    unconditional: float = Field(default=0.1, ge=0, le=1, description="share of captions left out, for guidance")
    compiled: bool = Field(
        default=False, description="by torch.compile: a minute once, then 1.6 times as fast on a CPU"
    )
    shuffled_captions: bool = Field(default=False, description="a control: what is learnt when captions say nothing")


class DinoConfig(TrainConfig):
    """A self-supervised image encoder (arXiv:2104.14294): teacher and student see crops of one picture."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    patch: int = 8
    prototypes: int = 1024
    local_crops: int = 2
    teacher_momentum: float = 0.996


class PretrainConfig(Frozen):
    """Every part. The defaults are the committed weights' settings before those of FURTHER; they had these steps in several
    runs, each with a schedule of its own (docs/base-model.md)."""

    world: WorldConfig = WorldConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    clip: ClipConfig = ClipConfig(steps=2_800, batch_size=192, learning_rate=2.5e-3, weight_decay=0.1, ema_decay=0.99)
    vae: VaeConfig = VaeConfig(steps=3_400, batch_size=64, learning_rate=2e-3, warmup=50, ema_decay=0.995)
    unet: UNetConfig = UNetConfig(
        steps=14_500, batch_size=64, learning_rate=1e-3, warmup=200, ema_decay=0.9995, compiled=True
    )
    judge: ClipConfig = ClipConfig(
        steps=3_000,
        batch_size=192,
        learning_rate=2.5e-3,
        weight_decay=0.1,
        ema_decay=0.99,
        seed=1,
        vision="resnet",
        text_width=128,
        text_layers=3,
        text_heads=4,
        embed_dim=160,
        uncoloured=0.5,
        largest_scale=16,
        noise=0.08,
    )
    dino: DinoConfig = DinoConfig(steps=600, batch_size=64, learning_rate=1e-3, weight_decay=0.04, seed=2)
    validation: int = Field(
        default=384, ge=16, description="scenes of one thing that it is measured on; half as many of two"
    )
    guidance_scale: float = Field(default=5.0, ge=1, description="of the pictures that are measured")
    onward: tuple[Literal["judge", "vae", "unet"], ...] = Field(
        default=("unet",), description="the parts that are trained on where there is a model to go on from"
    )

    @property
    def sample(self) -> SampleConfig:
        """How the pictures that are measured are drawn."""
        return SampleConfig(steps=25, guidance_scale=self.guidance_scale, batch_size=32, precision=native_precision())

    def of(self, steps: int | None, seed: int) -> "PretrainConfig":
        """The same with another seed of the scenes and of the parts that go on, and other steps of the last of them."""
        changed: dict[str, Frozen] = {"world": self.world.model_copy(update={"seed": seed})}
        for name in self.onward:
            part: TrainConfig = getattr(self, name)
            longer = {"steps": steps} if steps and name == self.onward[-1] else {}
            changed[name] = part.model_copy(update={"seed": seed} | longer)
        return self.model_copy(update=changed)


# What people customize is what the web shows most of: photographs of cats and chairs there are more than of helicopters.
CUSTOMIZED = (
    "cat", "dog", "teddy bear", "turtle", "pot", "teapot", "barn", "house", "gate", "chair", "table", "flower", "car",
)  # fmt: skip
FURTHER = PretrainConfig(
    world=WorldConfig(
        scenes=64_000,
        boost=dict.fromkeys(CUSTOMIZED, 5.0),
        odds=Odds(paints=(0.15, 0.2, 0.65), sizes=(0.25, 0.63, 0.12), together=0.5),
    ),
    unet=UNetConfig(steps=5_600, batch_size=64, learning_rate=6e-4, warmup=200, ema_decay=0.9995, compiled=True),
)
DECODER = PretrainConfig(
    world=WorldConfig(scenes=24_000, boost=dict.fromkeys(CUSTOMIZED, 3.0), odds=Odds(paints=(0.1, 0.3, 0.6))),
    vae=VaeConfig(
        steps=1_800,
        batch_size=64,
        learning_rate=5e-4,
        warmup=50,
        ema_decay=0.998,
        chroma_weight=2.0,
        encoder_frozen=True,
    ),
    onward=("vae",),
)
LATENTS = FURTHER.model_copy(
    update={
        "vae": VaeConfig(steps=3_600, batch_size=64, learning_rate=1e-3, warmup=50, ema_decay=0.998, chroma_weight=2.0),
        "unet": FURTHER.unet.model_copy(update={"steps": 2_400}),
        "onward": ("vae", "unet"),
    }
)
JUDGE = FURTHER.model_copy(
    update={
        "world": WorldConfig(scenes=48_000, boost=dict.fromkeys(CUSTOMIZED, 3.0), odds=DECODER.world.odds, twins=True),
        "judge": FURTHER.judge.model_copy(
            update={
                "steps": 2_500,
                "learning_rate": 1e-3,
                "warmup": 50,
                "ema_decay": 0.998,
                "wobble": 1.5,
                "naming_parts": True,
                "uncoloured": 0.7,
                "identity": 2.0,
                "largest_scale": 100.0,
            }
        ),
        "onward": ("judge",),
    }
)
SMOKE = PretrainConfig(
    world=WorldConfig(scenes=2_000, held_out=1_024, size=32),
    tokenizer=TokenizerConfig(vocabulary=900),
    clip=ClipConfig(
        steps=60, batch_size=64, learning_rate=2e-3, warmup=5, ema_decay=0.9,
        text_width=64, text_layers=2, text_heads=2,
    ),
    vae=VaeConfig(steps=80, batch_size=16, learning_rate=3e-3, warmup=5, ema_decay=0.9, channels=(16, 32, 32)),
    unet=UNetConfig(
        steps=450, batch_size=32, learning_rate=2e-3, warmup=10, ema_decay=0.98,
        channels=(32, 64), layers=(1, 1), heads=(2, 2), attention_down=(True, True), attention_up=(True, True),
    ),
    judge=ClipConfig(
        steps=20, batch_size=64, learning_rate=2e-3, warmup=5, ema_decay=0.9, seed=1, vision="resnet",
        vision_width=8, text_width=64, text_layers=1, text_heads=2,
    ),
    dino=DinoConfig(
        steps=10, batch_size=16, learning_rate=5e-4, warmup=2, width=64, layers=2, heads=2, prototypes=64, seed=2
    ),
    validation=64,
)  # fmt: skip
PRESETS = {
    "full": PretrainConfig(),
    "further": FURTHER,
    "decoder": DECODER,
    "latents": LATENTS,
    "judge": JUDGE,
    "smoke": SMOKE,
}
