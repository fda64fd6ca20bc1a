"""Tokens alone, as diffusers, webui and SDXL's tools keep them.

{"<new1>": (768,)}    {"string_to_param": {"*": (1, 768)}, "name": "<new1>"}    {"clip_l": (1, 768), "clip_g": (1, 1280)}
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from customdiff_core.errors import DeltaError
from customdiff_core.interop.content import ENCODERS, PICKLES, Parts, Rows, open_content, rows_of, tensors_of

logger = logging.getLogger(__name__)

WEBUI = "string_to_param"
SDXL = ("clip_l", "clip_g")


def matches(content: dict[str, Any]) -> bool:
    """Whether a file holds tokens and nothing else."""
    return WEBUI in content or set(content) == set(SDXL) or _are_rows(content)


def read(path: Path, content: dict[str, Any]) -> Parts:
    """Read a token's file; one that does not name its token is called by its own name.

    Raises:
        DeltaError: for tokens of several vectors.
    """
    if WEBUI in content:
        vectors = tensors_of(content[WEBUI], f"{path}: {WEBUI}")
        rows = [rows_of(vector, f"{path}: {name}") for name, vector in vectors.items()]
        if len(rows) != 1:
            raise DeltaError(f"{path}: found {len(rows)} tokens in {WEBUI}, need one a file; export it again")
        return Parts(tokens={str(content.get("name") or path.stem): rows[0]})
    if set(content) == set(SDXL):
        return Parts(tokens={path.stem: rows_of([content["clip_l"], content["clip_g"]], str(path))})
    return Parts(tokens={token: rows_of(value, f"{path}: {token}") for token, value in content.items()})


def read_folder(folder: Path, weights: str = "") -> dict[Path, dict[str, Rows]]:
    """Read the tokens' files of a folder, whatever they are called, by file; what holds no token is left out, and the log says so.

    Args:
        folder: its own files, none of folders in it.
        weights: what weights are called there, without the suffix.

    Raises:
        DeltaError: for a file that is named as a token, <...>, and cannot be read.
    """
    found: dict[Path, dict[str, Rows]] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix not in (".safetensors", *PICKLES) or path.stem == weights or not path.is_file():
            continue
        try:
            found[path] = _read_alone(path)
        except DeltaError as error:
            if path.stem.startswith("<"):
                raise
            logger.warning("left out: %s", error)
    return found


def union(files: Mapping[Path, Mapping[str, Rows]]) -> dict[str, Rows]:
    """The tokens of several files.

    Raises:
        DeltaError: for two files with different rows of one token.
    """
    tokens: dict[str, Rows] = {}
    places: dict[str, Path] = {}
    for path, held in files.items():
        for token, rows in held.items():
            if token in tokens and not _equal(rows, tokens[token]):
                raise DeltaError(
                    f"{path}: found other rows of {token} than in {places[token].name}, need one file a token; remove the "
                    "older one"
                )
            tokens[token], places[token] = rows, path
    return tokens


def write(folder: Path, token: str, rows: Rows, suffix: str = ".safetensors") -> Path:
    """Write a token's file in diffusers' layout; two vectors go into SDXL's, whose readers count the rows of each.

    Raises:
        DeltaError: if the token is no file name.
    """
    path = folder / f"{_file_name(token)}{suffix}"
    vectors = [rows[encoder].clone() for encoder in ENCODERS if encoder in rows]  # a view would save the whole table
    pair = {name: vector[None] for name, vector in zip(SDXL, vectors, strict=False)}
    tensors: dict[str, Tensor] = {token: vectors[0]} if len(vectors) == 1 else pair
    if suffix in PICKLES:
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return path


def write_webui(folder: Path, token: str, rows: Rows) -> Path:
    """Write a token's file as webui keeps it in `embeddings/`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_file_name(token)}.pt"
    torch.save({WEBUI: {"*": rows[ENCODERS[0]][None].clone()}, "name": token}, path)
    return path


def _read_alone(path: Path) -> dict[str, Rows]:
    content = open_content(path)
    if not matches(content):
        some = ", ".join(list(map(str, content))[:3]) or "nothing"
        raise DeltaError(f"{path}: found a file that holds {some}, need one vector a token; export the token again")
    return read(path, content).tokens


def _equal(one: Rows, other: Rows) -> bool:
    return one.keys() == other.keys() and all(torch.equal(row, other[encoder]) for encoder, row in one.items())


def _are_rows(content: dict[str, Any]) -> bool:
    """One short vector a token, or a list of two."""
    vectors = [one for value in content.values() for one in (value if isinstance(value, list) else [value])]
    return bool(vectors) and all(isinstance(one, Tensor) and one.squeeze().ndim == 1 for one in vectors)


def _file_name(token: str) -> str:
    if not token or "/" in token or "\\" in token or token.startswith("."):
        raise DeltaError(f"token: found {token!r}, which is no file name, need one such as <new1>; rename it")
    return token
