"""Regularization captions, and the factorization of their features: once for each base model, kept in the store."""

from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from customdiff_core import stages
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.errors import MergeError
from customdiff_core.finetuning.components import load_encoders
from customdiff_core.merging.closed_form import Factorization, factorize
from customdiff_core.merging.text_features import regularization_features
from customdiff_core.profiles import Profile

FILE = "factorization.safetensors"


def factorization(
    index: Artifact | None, profile: Profile, count: int, *, store: Store
) -> tuple[Artifact, Factorization]:
    """Encode and factorize the captions of a retrieval index, or take what the store has of it.

    Args:
        index: a built `index`; None takes the profile's own folder.
        profile: the base model, whose text encoder reads them.
        count: captions, spread evenly over the index.
        store: where it is kept.

    Raises:
        MergeError: if the captions are empty or do not span the text features.
    """

    def produce(folder: Path) -> int:
        captions = read_captions(stages.index_folder(index, profile, store), count)
        made = factorize(regularization_features(load_encoders(profile.model), captions))
        save_file({"r": made.r.contiguous(), "rows": torch.tensor(made.rows)}, folder / FILE)
        return made.rows

    artifact = store.make(stages.factorize(index, profile, count, store), produce)
    tensors = load_file(store.path(artifact) / FILE)
    return artifact, Factorization(tensors["r"], int(tensors["rows"]))


def read_captions(folder: Path, count: int) -> list[str]:
    """Return different captions of a clip-retrieval index, spread evenly over it.

    Raises:
        MergeError: if it has none.
    """
    parts = [pq.read_table(path, columns=["caption"]) for path in sorted((folder / "metadata").glob("*.parquet"))]
    found = dict.fromkeys(
        text.strip() for part in parts for text in part["caption"].to_pylist() if text and text.strip()
    )
    if not found:
        raise MergeError(f"regularization captions: found none in {folder}, need about {count}; take another index")
    captions = list(found)
    return captions[:: max(1, len(captions) // count)][:count]
