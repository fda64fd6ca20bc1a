"""Where a delta comes from: its base model, its method, what it was taught, and from which deltas it was made."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open

from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import Frozen
from customdiff_core.errors import DeltaError

FORMAT = "customdiff-delta-2"
FIRST_FORMAT = "customdiff-delta-1"
TOKEN_PREFIX = "modifier_token."
FILE = "delta.safetensors"


class Taught(Frozen):
    """One concept that a delta knows: `modifier_token` is what prompts call it, a new token or a rare word."""

    name: str
    category: str = ""
    modifier_token: str
    initializer_token: str = ""

    @property
    def noun(self) -> str:
        """As prompts say it: "<teal-cat> cat"; of an imported concept without a category, its token."""
        return f"{self.modifier_token} {self.category}".strip()


class Lineage(Frozen):
    """What a delta's file says of itself."""

    base_digest: str = Field(default="", description="the base model's digest; empty in files of other programs")
    base_stated: bool = Field(default=False, description="the base is what the user said of an imported file")
    method: str = "unknown"
    concepts: tuple[Taught, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict, description="what it was made of, by digest")

    @property
    def places(self) -> str:
        """What {0}, {1}, ... of a prompt stand for: "{0} <purple-dog> dog, {1} <teal-cat> cat"."""
        return ", ".join(f"{{{number}}} {one.noun}" for number, one in enumerate(self.concepts))


def lineage_of(delta: Artifact, store: Store) -> Lineage:
    """Read what a delta of the store says of itself, without its tensors or a library for them."""
    return read_lineage(store.path(delta) / FILE)


def read_lineage(path: Path) -> Lineage:
    """Read what a delta's file says of itself, likewise.

    Raises:
        DeltaError: if it is no delta, or of a format that this version does not know.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
    except (OSError, SafetensorError) as error:
        raise DeltaError(f"{path}: found no readable safetensors ({error}), need a delta; copy it again") from error
    tokens = [name.removeprefix(TOKEN_PREFIX).rsplit(".", 1)[0] for name in names if name.startswith(TOKEN_PREFIX)]
    return _with_tokens(from_metadata(metadata, str(path)), tokens)


def to_metadata(lineage: Lineage) -> dict[str, str]:
    """A safetensors header's metadata."""
    return {"format": FORMAT, "lineage": lineage.model_dump_json()}


def from_metadata(metadata: dict[str, str], what: str) -> Lineage:
    """Read a header's metadata.

    Raises:
        DeltaError: for another program's file, or one of a format that this version does not know.
    """
    found = metadata.get("format", "no format")
    try:
        if found == FORMAT:
            return Lineage.model_validate_json(metadata["lineage"])
        if found == FIRST_FORMAT:
            return _first(metadata)
    except (KeyError, ValueError, ValidationError) as error:
        raise DeltaError(
            f"{what}: found a {found} header that cannot be read ({type(error).__name__}), need it whole; copy it again"
        ) from error
    raise DeltaError(
        f"{what}: found {found}, need {FORMAT}; update this program if a newer version wrote it, or import it if another did"
    )


def _first(metadata: dict[str, str]) -> Lineage:
    """Format 1 knew one concept, and named its token only in its tensors."""
    lists = (json.loads(metadata[name]) for name in ("concepts", "categories", "initializer_tokens"))
    concepts = tuple(
        Taught(name=name, category=category, modifier_token="", initializer_token=word)
        for name, category, word in zip(*lists, strict=True)
    )
    settings = json.loads(metadata["config"])
    return Lineage(base_digest=metadata["base_digest"], method=metadata["method"], concepts=concepts, settings=settings)


def _with_tokens(lineage: Lineage, tokens: list[str]) -> Lineage:
    """Format 1 names its one token in the tensors alone."""
    concepts = tuple(
        one if one.modifier_token or not tokens else one.model_copy(update={"modifier_token": tokens[0]})
        for one in lineage.concepts
    )
    return lineage.model_copy(update={"concepts": concepts})
