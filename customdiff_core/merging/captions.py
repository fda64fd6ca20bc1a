"""Regularization captions, and the factorization of their features: once for each base model, kept in the store."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from customdiff_core import stages
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.errors import MergeError
from customdiff_core.finetuning.components import load_encoders
from customdiff_core.merging.closed_form import Factorization, factorize
from customdiff_core.merging.text_features import regularization_features
from customdiff_core.profiles import Profile
from customdiff_core.retrieval.metadata import Ids, Metadata

FILE = "factorization.safetensors"
READ = 4  # rows read for each caption wanted: many have the same


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
        numbers = {"rows": torch.tensor(made.rows), "condition": torch.tensor(made.condition, dtype=torch.float64)}
        save_file({"r": made.r.contiguous(), **numbers}, folder / FILE)
        return made.rows

    artifact = store.make(stages.factorize(index, profile, count, store), produce)
    tensors = load_file(store.path(artifact) / FILE)
    return artifact, Factorization(tensors["r"], int(tensors["rows"]), float(tensors["condition"]))


def read_captions(folder: Path, count: int) -> list[str]:
    """Return different captions of a clip-retrieval index, spread evenly over it; never more than a few of its rows are read.

    Raises:
        RetrievalError: if it is no such index; MergeError: if it has no captions.
    """
    metadata = Metadata(folder / "metadata")
    texts = metadata.rows(_spread(len(metadata), READ * count))["caption"] if len(metadata) else ()
    captions = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not captions:
        raise MergeError(f"regularization captions: found none in {folder}, need about {count}; take another index")
    return [captions[place] for place in _spread(len(captions), count)]


def _spread(available: int, wanted: int) -> Ids:
    """Places 0..available-1, as many as are wanted or all, evenly apart."""
    return np.linspace(0, available - 1, min(wanted, available)).round().astype(np.int64)
