"""A protocol: what a benchmark compares and how it measures, as data in `data/protocols/<name>.yaml`.

openmoji-quick      every row, trained for a moment: figures that say that all works, and no verdicts
openmoji-nightly    every row on the embedded world's concepts
paper               the paper's: 20 prompts x 50 images, 8 x 50 for pairs, DDIM with 200 steps, guidance 6, eta 1

`customdiff lay-out` writes one for a published list of concepts, such as CustomConcept101's.
"""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import Field, ValidationError

from customdiff_core.benchmark import rows
from customdiff_core.benchmark.rows import Source
from customdiff_core.config import EvaluateConfig, Frozen, SampleConfig
from customdiff_core.errors import ConfigError, did_you_mean
from customdiff_core.profiles import Profile
from customdiff_core.settings import Settings

NAME = r"^[a-z0-9][a-z0-9-]*$"


class Together(Frozen):
    """Concepts that are drawn in one picture."""

    concepts: tuple[str, ...] = Field(
        min_length=2, description="in the order of their places, and of sequential training"
    )
    prompts: str = Field(
        default="", description="file in data/prompts with {0}, {1}, ...; empty: together-<number>.txt"
    )


class Protocol(Frozen):
    """What is compared, and how it is measured."""

    name: str = Field(pattern=NAME)
    concepts: tuple[str, ...] = Field(description="taught alone; the first one's trade-off over steps is measured")
    together: tuple[Together, ...] = ()
    rows: tuple[str, ...] = Field(default=tuple(rows.ROWS), min_length=1, description="names of benchmark/rows.py")
    trainings: int = Field(default=1, ge=1, description="training seeds a night")
    share: float = Field(default=1.0, gt=0, le=1, description="of the profile's training steps")
    prompts: int = Field(default=20, ge=1, description="of each concept's prompts, the first")
    prompts_together: int = Field(default=8, ge=1, description="of the prompts for several concepts, the first")
    seeds: int = Field(ge=1, description="images a prompt")
    sample: SampleConfig | None = Field(default=None, description="how images are drawn; empty: the profile's")
    kid_images: int = Field(ge=6, description="held-out captions of the category; one image is drawn for each")
    kid_subset_size: int = Field(ge=2, description="torch-fidelity's subset size")
    curve: tuple[float, ...] = Field(
        default=(), description="shares of the steps at which the trade-off is measured too"
    )
    curve_seeds: int = Field(default=2, ge=1, description="images a prompt there")
    confidence: float = Field(default=0.95, gt=0, lt=1)
    beside: Source = Field(default="paper", description="whose published figures stand beside these")
    keep_nights: int = Field(
        default=3, ge=1, description="nights whose trainings and images stay in the store; scores stay for ever"
    )
    stated: str = Field(
        default="", description="names what a run changed, whose nights are a history of their own; empty: nothing"
    )
    verdicts: bool = Field(default=True, description="say which claims hold; not where trainings are too short for it")

    def evaluation(self, profile: Profile, *, on_curve: bool = False) -> EvaluateConfig:
        """How a cell is measured."""
        return profile.evaluate.model_copy(
            update={
                "seeds": tuple(range(self.curve_seeds if on_curve else self.seeds)),
                "sample": self.sample or profile.evaluate.sample,
                "kid_images": self.kid_images,
                "kid_subset_size": self.kid_subset_size,
                "confidence": self.confidence,
            }
        )


def names(data: Path | None = None) -> list[str]:
    """The protocols of data/protocols."""
    return sorted(path.stem for path in _folder(data).glob("*.yaml"))


def load(name: str, data: Path | None = None) -> Protocol:
    """Read `data/protocols/<name>.yaml`.

    Raises:
        ConfigError: for an unknown name, or a file that is no protocol.
    """
    return checked(read(Protocol, _folder(data), name))


Fields = TypeVar("Fields", bound=Frozen)


def read(kind: type[Fields], folder: Path, name: str) -> Fields:
    """Read `<folder>/<name>.yaml` as the fields of a class; the file's name is one of them.

    Raises:
        ConfigError: for an unknown name, or a file that has other fields.
    """
    known, what = sorted(path.stem for path in folder.glob("*.yaml")), kind.__name__.lower()
    if name not in known:
        raise ConfigError(f"{what}: found {name!r}, need one of {', '.join(known)}{did_you_mean(name, known)}")
    path = folder / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return kind.model_validate({"name": name} | content)
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"{path}: found text that is not YAML fields, need `key: value` lines") from error
    except ValidationError as error:
        wrong = ", ".join(f"{'.'.join(map(str, one['loc']))} ({one['msg']})" for one in error.errors())
        allowed = ", ".join(kind.model_fields)
        raise ConfigError(f"{path}: found {wrong} wrong, need the fields {allowed}; correct it") from error


def checked(protocol: Protocol) -> Protocol:
    """Return a protocol whose rows exist and whose numbers fit together.

    Raises:
        ConfigError: naming what does not fit.
    """
    for name in protocol.rows:
        rows.get(name)
    if protocol.kid_subset_size > protocol.kid_images:
        raise ConfigError(
            f"protocol {protocol.name}: found kid_subset_size {protocol.kid_subset_size}, need at most kid_images "
            f"{protocol.kid_images}; lower it"
        )
    if any(not 0 < share < 1 for share in protocol.curve):
        raise ConfigError(
            f"protocol {protocol.name}: found the curve {protocol.curve}, need shares between 0 and 1; correct it"
        )
    return protocol


def _folder(data: Path | None) -> Path:
    return (data or Settings().data) / "protocols"
