"""Every format by its name: which one a file is, what is in it, and how to write it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from customdiff_core import delta as deltas
from customdiff_core.compression import compressed
from customdiff_core.config import CompressConfig
from customdiff_core.delta import Delta
from customdiff_core.errors import ConfigError, DeltaError, did_you_mean
from customdiff_core.interop import authors, diffusers_format, embeddings, lora, webui
from customdiff_core.interop.content import PICKLES, Base, Parts, Rows, metadata_of, open_content

Readable = Literal["customdiff", "diffusers", "authors", "compvis", "embedding", "webui"]
Writable = Literal[
    "customdiff", "diffusers", "diffusers-bin", "authors", "compvis", "embedding", "webui", "kohya", "peft"
]
SAFETENSORS = (".safetensors",)
SUFFIXES: Mapping[str, tuple[str, ...]] = {  # of the formats that are one file; the others are folders
    "customdiff": SAFETENSORS,
    "authors": PICKLES,
    "compvis": PICKLES,
    "webui": SAFETENSORS,
    "kohya": SAFETENSORS,
    "peft": SAFETENSORS,
}


@dataclass(frozen=True)
class Opened:
    """A file of a known format: `path` is the weights' own where a folder with weights was given.

    `tokens` are those of files beside it, or in it, by file.
    """

    path: Path
    format: Readable
    content: Mapping[str, Any]
    tokens: Mapping[Path, Mapping[str, Rows]] = field(default_factory=dict[Path, Mapping[str, Rows]])

    @property
    def files(self) -> list[Path]:
        """Every file that it is read from."""
        return [path for path in (self.path, *self.tokens) if path.is_file()]


def identify(path: Path) -> Opened:
    """Open a file or folder and say which format it is.

    Raises:
        DeltaError: if it is none of them, or cannot be trusted.
    """
    if path.is_dir():
        return _in_folder(path)
    content = open_content(path)
    if metadata_of(path).get("format", "").startswith("customdiff-delta"):
        return Opened(path, "customdiff", content)
    kinds: tuple[tuple[Readable, bool], ...] = (
        ("diffusers", diffusers_format.matches(content)),
        ("compvis", authors.is_compvis(content)),
        ("authors", authors.is_delta_bin(content)),
        ("webui", webui.matches(content)),
        ("embedding", embeddings.matches(content)),
    )
    for kind, found in kinds:
        if found:
            return Opened(path, kind, content, _beside(path, kind))
    some = ", ".join(list(map(str, content))[:3]) or "nothing"
    raise DeltaError(
        f"{path}: found a file that holds {some}, need one of {', '.join(get_args(Readable))}; export it again as one of them"
    )


def read(opened: Opened, base: Base) -> Delta | Parts:
    """Read an opened file: this project's comes with its lineage, another's as bare parts.

    Raises:
        DeltaError: if it is not what its format says, or two files beside it hold different rows of one token.
    """
    path, content = opened.path, dict(opened.content)
    match opened.format:
        case "customdiff":
            return deltas.load(path)
        case "diffusers":
            parts = diffusers_format.read(path, content)
        case "authors":
            parts = authors.read_delta_bin(path, content)
        case "compvis":
            parts = authors.read_compvis(path, content, base)
        case "webui":
            parts = webui.read(path, content, base)
        case "embedding":
            parts = embeddings.read(path, content)
    return Parts(parts.weights, parts.tokens | embeddings.union(opened.tokens))


def write(path: Path, delta: Delta, base: Base, kind: str, rank: int = 64) -> list[Path]:
    """Write a delta for another program.

    Args:
        path: a file, or for diffusers and embedding a folder.
        delta: what is written; factored changes are multiplied out where the format has whole weights.
        base: the base model, for those.
        kind: one of Writable.
        rank: of a LoRA.

    Returns:
        The files that were written.

    Raises:
        ConfigError: for an unknown format, or a path that is not called as one of it; DeltaError: for what it cannot hold.
    """
    if kind not in get_args(Writable):
        remedy = did_you_mean(kind, get_args(Writable)) or "; choose one of them"
        raise ConfigError(f"format: found {kind!r}, need one of {', '.join(get_args(Writable))}{remedy}")
    _check_name(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens = {token: dict(rows) for token, rows in delta.tokens.items()}
    if kind in ("kohya", "peft"):
        thin = compressed(delta, base.weights(delta.names), CompressConfig(rank=rank))[0]
        return lora.write(path, dict(thin.factors), sorted(thin.weights), tokens, kind)
    if kind == "customdiff":
        deltas.save(path, delta)
        return [path]
    if kind == "embedding":
        path.mkdir(parents=True, exist_ok=True)
        return [embeddings.write(path, token, rows) for token, rows in tokens.items()]
    originals = base.weights(delta.factors)
    parts = Parts(dict(delta.weights) | {name: delta.whole(name, originals[name]) for name in delta.factors}, tokens)
    match kind:
        case "diffusers" | "diffusers-bin":
            return diffusers_format.write(path, parts, ".bin" if kind == "diffusers-bin" else ".safetensors")
        case "authors":
            return authors.write_delta_bin(path, parts)
        case "compvis":
            return authors.write_compvis(path, _ordered(parts, delta), base)
        case _:
            return webui.write(path, parts, base)


def _check_name(path: Path, kind: str) -> None:
    """Check that a path's suffix is of what is written there: every reader goes by it.

    Raises:
        ConfigError: naming both.
    """
    suffixes = SUFFIXES.get(kind, ())
    if suffixes and path.suffix not in suffixes:
        raise ConfigError(
            f"{path}: found {path.suffix or 'no suffix'} for {kind}, need {' or '.join(suffixes)}; call the file so"
        )
    if not suffixes and path.suffix in (*SAFETENSORS, *PICKLES):
        raise ConfigError(f"{path}: found {path.suffix} for {kind}, need a folder; leave the suffix out")


def _ordered(parts: Parts, delta: Delta) -> Parts:
    """Tokens in the order in which the concepts were taught: a CompVis file has no names for them."""
    order = [one.modifier_token for one in delta.lineage.concepts]
    named = sorted(parts.tokens, key=lambda token: order.index(token) if token in order else len(order))
    return Parts(parts.weights, {token: parts.tokens[token] for token in named})


def _in_folder(folder: Path) -> Opened:
    """Open a folder's weights with the tokens beside them, or its tokens alone."""
    path = diffusers_format.weights_file(folder)
    if path is not None:
        return Opened(path, "diffusers", open_content(path), _beside(path, "diffusers"))
    tokens = embeddings.read_folder(folder)
    if not tokens:
        raise DeltaError(
            f"{folder}: found no {diffusers_format.STEM}.safetensors or .bin, nor a token's file, need a folder of diffusers' "
            "Custom Diffusion; name the folder that holds them, or the file itself"
        )
    return Opened(folder, "embedding", {}, tokens)


def _beside(path: Path, kind: Readable) -> Mapping[Path, Mapping[str, Rows]]:
    """The tokens that a format keeps in files of their own."""
    match kind:
        case "diffusers":
            return embeddings.read_folder(path.parent, path.stem)
        case "webui":
            return embeddings.read_folder(path.parent / webui.FOLDER)
        case _:
            return {}
