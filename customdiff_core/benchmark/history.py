"""The nights so far: one row a cell a night, gathered from each night's benchmark into the next."""

from collections.abc import Sequence
from datetime import date
from math import nan
from typing import Any

import pandas as pd

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Manifest, Store
from customdiff_core.benchmark import rows
from customdiff_core.benchmark.outcomes import Outcome
from customdiff_core.benchmark.protocol import Protocol
from customdiff_core.errors import MissingError
from customdiff_core.profiles import Profile
from customdiff_core.recipes import Recipe, digest_of

KIND = "benchmark"
METRICS = {
    "text_alignment": "Text alignment",
    "image_alignment_training": "Image alignment",
    "image_alignment_held_out": "Image alignment, held-out pictures",
    "dino_alignment_training": "DINO image alignment",
    "nearest_training": "Likeness to the nearest training picture",
    "recognised": "Taken for this one, by the judge",
    "recognised_by_colour": "Taken for this one, by its colours",
    "kid": "KID × 10³",
    "image_alignment_1": "Image alignment, first concept",
    "image_alignment_2": "Image alignment, second concept",
}
PAPERS = ("text_alignment", "image_alignment_training", "kid")  # the metrics of the paper's table
COSTS = ("seconds", "memory", "bytes", "trained_share")  # of a customized model
LOWER_IS_BETTER = frozenset({"kid"})


def earlier(protocol: Protocol, night: date, profile: Profile, store: Store) -> tuple[Artifact, ...]:
    """The benchmarks of the nights before this one, oldest first; of a night that was run again, the last.

    Nights of another profile's base model, and those of which something was stated beside the protocol, are none of its
    history, nor the protocol's of theirs.
    """
    nights: dict[str, list[Manifest]] = {}
    for one in _labelled(protocol.name, protocol.stated, profile.name, store):
        if one.recipe.labels["night"] < night.isoformat():
            nights.setdefault(one.recipe.labels["night"], []).append(one)
    newest_first = (sorted(nights[name], key=lambda one: one.created, reverse=True) for name in sorted(nights))
    whole = (store.first_whole(found) for found in newest_first)
    return tuple(one for one in whole if one)


def newest(protocol: str, profile: str, store: Store) -> Artifact:
    """Return the benchmark of a protocol's last night; of a night that was run again, the last.

    Raises:
        MissingError: if there is none.
    """
    found = sorted(
        _labelled(protocol, "", profile, store), key=lambda one: (one.recipe.labels["night"], one.created), reverse=True
    )
    if last := store.first_whole(found):
        return last
    raise MissingError(
        f"benchmark: found no night of protocol {protocol} with profile {profile} in {store.root}, need one; run its deployment"
    )


def _labelled(protocol: str, stated: str, profile: str, store: Store) -> list[Manifest]:
    labels = {"protocol": protocol, "stated": stated, "profile": profile}
    return [one for one in store.manifests(KIND) if labels.items() <= one.recipe.labels.items()]


def frame(
    outcomes: tuple[Outcome, ...], protocol: Protocol, night: date, before: Sequence[Artifact], store: Store
) -> pd.DataFrame:
    """Every cell of every night: what it is, whether it was measured, its figures and costs, and those published.

    A night's rows are those of its own benchmark, whenever that was made; where it is lost, those that a later one has of it.
    """
    tonight = pd.DataFrame([_row(one, protocol, night, store) for one in outcomes])
    nights: dict[str, pd.DataFrame] = {}
    for one in before:
        *carried, (own, cells) = tables.read(store, one, KIND).groupby("night", sort=True)
        nights = {str(name): others for name, others in carried} | nights | {str(own): cells}
    return pd.concat([*(nights[name] for name in sorted(nights)), tonight], ignore_index=True)


def settings_key(recipe: Recipe) -> str:
    """What two trainings have in common that differ in nothing but their seed."""
    config = {name: value for name, value in recipe.config.items() if name != "seed"}
    return recipe.model_copy(update={"config": config}).key


def judges_key(recipe: Recipe) -> str:
    """What figures have in common that may be compared night by night: the encoders that they are seen by."""
    return digest_of([recipe.inputs.get(name, "") for name in ("judge", "dino", "inception")])


def terms_key(recipe: Recipe) -> str:
    """What two nights have in common that measured the same thing, with whatever code and libraries: those may drift."""
    config = {name: value for name, value in recipe.config.items() if name != "seed"}
    return digest_of([recipe.inputs, config])


def measured(cells: Any) -> set[tuple[str, str]]:
    """What some cells measured: of which concepts, on which terms."""
    return set(zip(cells["concepts"], cells["terms"], strict=True))


def _row(outcome: Outcome, protocol: Protocol, night: date, store: Store) -> dict[str, object]:
    cell, made = outcome.cell, outcome.made
    found: dict[str, object] = {
        "night": night.isoformat(),
        "protocol": protocol.name,
        "row": cell.row,
        "concepts": "+".join(cell.concepts),
        "seed": cell.seed,
        "share": cell.share,
        "status": "measured" if made else "failed",
        "error": outcome.error,
        "cell": made.key if made else "",
        "settings": settings_key(store.manifest(made).recipe) if made else "",
        "judges": judges_key(store.manifest(made).recipe) if made else "",
        "terms": terms_key(store.manifest(made).recipe) if made else "",
    }
    found |= dict.fromkeys(METRICS, nan)
    if made:
        found |= {row["metric"]: row["value"] for row in tables.records(tables.read(store, made, "measures"))}
        found |= tables.records(tables.read(store, made, "costs"))[0]
    return found | {f"paper_{name}": rows.get(cell.row).figure(protocol.beside, name) for name in PAPERS}


def failed(benchmark: Artifact, night: date, store: Store) -> list[str]:
    """This night's cells that could not be measured, and why."""
    cells = tables.read(store, benchmark, KIND)
    lost = tables.records(cells[(cells["night"] == night.isoformat()) & (cells["status"] == "failed")])
    return [f"{one['row']}, {one['concepts']}, seed {one['seed']}: {one['error']}" for one in lost]
