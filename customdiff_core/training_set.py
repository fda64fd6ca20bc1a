"""A training set's files, read: its rows of examples. No torch."""

import pandas as pd

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.errors import TrainingError

LATENTS = "latents.safetensors"
COLUMNS = ("role", "prompt", "prefix", "width", "height", "latent_row")


def examples(store: Store, training_set: Artifact) -> pd.DataFrame:
    """A row a view or regularization image: what it is and says, its size in pixels, and its latents' place in that shape.

    Raises:
        TrainingError: for a training set of an earlier version.
    """
    table = tables.read(store, training_set, "examples")
    if missing := set(COLUMNS) - set(table.columns):
        raise TrainingError(
            f"training set {training_set.key}: found no column {min(missing)}, need one that this version made; augment again"
        )
    return table
