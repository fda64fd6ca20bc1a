"""Keep: what stays of earlier nights. Scores stay for ever; trainings and images, half a gigabyte a night, for some nights."""

import logging
from collections.abc import Iterable

import pandas as pd

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark.costs import involved
from customdiff_core.benchmark.history import KIND
from customdiff_core.benchmark.protocol import Protocol

logger = logging.getLogger(__name__)


def tidy(benchmark: Artifact, protocol: Protocol, *, store: Store) -> list[Artifact]:
    """Remove the trainings and images of all nights but the newest `protocol.keep_nights`.

    What a newer night uses too, such as the base model's images, stays. The scores of every cell stay, which is all that later
    nights ask of it; a removed training can be made again.

    Args:
        benchmark: the newest night's table, from `tabulate`.
        protocol: which nights it keeps.
        store: where they are.

    Returns:
        What was removed.
    """
    cells = tables.read(store, benchmark, KIND)
    kept = sorted(set(cells["night"]))[-protocol.keep_nights :]
    newer = cells["night"].isin(kept)
    used = _made_for(cells.loc[newer, "cell"], store)
    gone = [one for name, one in _made_for(cells.loc[~newer, "cell"], store).items() if name not in used]
    for artifact in gone:
        store.remove(artifact)
    if gone:
        logger.info("removed %d trainings and sets of images of nights before %s", len(gone), kept[0])
    return gone


def _made_for(cells: Iterable[str], store: Store) -> dict[tuple[str, str], Artifact]:
    """The trainings, with those that they were made from, and the images of some cells, as far as they are there."""
    found: list[Artifact] = []
    for cell in set(cells):
        path = store.root / "cell" / cell / "sources.parquet"
        if not path.is_file():
            continue
        for row in tables.records(pd.read_parquet(path)):
            one = Artifact.model_validate({name: value for name, value in row.items() if name != "name"})
            found += involved(one, store) if one.kind == "delta" else [one] if one.kind == "samples" else []
    return {(one.kind, one.key): one for one in found if store.path(one).is_dir()}
