"""The parameters of the run form, grouped by concern. An empty field takes the profile's own value."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from customdiff_core import concepts, profiles, weights
from customdiff_core.config import (
    BackendConfig,
    Device,
    EvaluateConfig,
    FetchConfig,
    FinetuneConfig,
    Frozen,
    Precision,
    RetrieveConfig,
    Runtime,
)
from customdiff_core.profiles import Profile

Config = TypeVar("Config", bound=Frozen)

if TYPE_CHECKING:
    ConceptName = str
    ProfileName = str
else:  # a list to choose from in the run form
    ConceptName = Literal[tuple(concepts.names())]
    ProfileName = Literal[tuple(profiles.BUILDERS)]


class ModelOptions(Frozen):
    """Which base model, and where its weights are."""

    profile: ProfileName = Field(
        default="openmoji", description="openmoji is embedded; sd14 and sd21 need weights and an index"
    )
    weights: Path | None = Field(
        default=None, description="a local diffusers folder instead of the profile's own weights"
    )
    index: Path | None = Field(default=None, description="a clip-retrieval index folder instead of the profile's own")
    backend: str | None = Field(
        default=None, description="address of a running clip-retrieval back, such as http://localhost:1234"
    )
    validation: Path | None = Field(default=None, description="a Parquet of held-out captioned images, for KID")
    device: Device = Field(default="auto", description="auto takes CUDA, then MPS, then the CPU")

    def resolve(self) -> Profile:
        """Build the profile, and say at once what this machine lacks for it."""
        profile = self.named()
        weights.require(profile)
        return profile

    def named(self) -> Profile:
        """Build the profile for a stage that needs nothing but its encoder."""
        return profiles.get(
            self.profile, model=self.weights, index=self.index, backend=self.backend, validation=self.validation
        )

    @property
    def runtime(self) -> Runtime:
        """What the machine decides."""
        return Runtime(device=self.device)


class RetrieveOptions(Frozen):
    """How many regularization images, from where, and how near to the class prompt."""

    regularization: Literal["retrieved", "generated", "none"] = Field(
        default="retrieved", description="real images by caption; drawn by the base model; or none"
    )
    count: int = Field(default=200, ge=1, description="regularization images; the paper uses 200")
    min_similarity: float | None = Field(default=None, description="least CLIP text cosine; empty: the profile's")
    deepest: int | None = Field(default=None, ge=1, description="most hits asked of the index; empty: the profile's")
    fetch: FetchConfig | None = Field(default=None, description="what a link may cost; empty: the profile's")
    backend: BackendConfig | None = Field(default=None, description="what is asked of a backend; empty: the profile's")

    def resolve(self, profile: Profile) -> RetrieveConfig:
        """The stage's settings."""
        return _filled(profile.retrieve, self)


class TrainOptions(Frozen):
    """How Custom Diffusion is trained; empty fields take the profile's values."""

    steps: int | None = Field(
        default=None, ge=1, description="optimizer steps; more than before goes on from the last checkpoint"
    )
    learning_rate: float | None = Field(default=None, gt=0, description="for keys and values")
    modifier_learning_rate: float | None = Field(default=None, gt=0, description="for V*")
    batch_size: int | None = Field(default=None, ge=1, description="concept views a step")
    precision: Precision | None = Field(default=None, description="fp32, bf16 or fp16")
    seed: int = 0

    def resolve(self, profile: Profile) -> FinetuneConfig:
        """The stage's settings."""
        return _filled(profile.finetune, self)


class EvaluateOptions(Frozen):
    """What is drawn and measured."""

    prompts: list[str] | None = Field(
        default=None, description="prompts with {} for the concept; empty: the concept's own 20"
    )
    seeds: int | None = Field(default=None, ge=1, description="images a prompt; empty: the profile's")
    kid_images: int | None = Field(default=None, ge=3, description="held-out captions for KID; empty: the profile's")

    def resolve(self, profile: Profile) -> EvaluateConfig:
        """The stage's settings."""
        seeds = tuple(range(self.seeds)) if self.seeds else profile.evaluate.seeds
        kid_images = self.kid_images or profile.evaluate.kid_images
        subset = min(profile.evaluate.kid_subset_size, kid_images)
        return profile.evaluate.model_copy(update={"seeds": seeds, "kid_images": kid_images, "kid_subset_size": subset})


def _filled(config: Config, options: Frozen) -> Config:
    """The profile's settings, with those that the options state."""
    stated = {name: value for name, value in options if value is not None}
    return config.model_copy(update=stated)
