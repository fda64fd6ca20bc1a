"""A training set's files, read: its rows of examples. No torch."""

import pandas as pd
import pyarrow.parquet as pq

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.errors import TrainingError

Size = tuple[int, int]  # width and height, pixels
LATENTS = "latents.safetensors"
COLUMNS = ("role", "prompt", "prefix", "width", "height", "latent_row")


def examples(store: Store, training_set: Artifact, *more: str) -> pd.DataFrame:
    """A row a view or regularization image: what it is and says, its size in pixels, and its latents' place in that shape.

    Args:
        store: where it is.
        training_set: from `augment`.
        more: columns read beside those, such as `image`.

    Raises:
        TrainingError: for a training set of an earlier version.
    """
    if missing := set(COLUMNS) - set(pq.read_schema(store.path(training_set) / "examples.parquet").names):
        raise TrainingError(
            f"training set {training_set.key}: found no column {min(missing)}, need one that this version made; augment again"
        )
    return tables.read(store, training_set, "examples", [*COLUMNS, *more])
