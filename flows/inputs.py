"""A stage run alone takes its input by key, or the newest of its kind for the concept; a delta also from a file."""

from collections.abc import Sequence
from pathlib import Path

import tasks.merge
from customdiff_core import concepts, tables
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import Stated
from customdiff_core.errors import ConfigError, MissingError, did_you_mean
from customdiff_core.lineage import lineage_of
from customdiff_core.merging.account import tokens_now
from customdiff_core.profiles import Profile
from customdiff_core.recipes import is_key
from customdiff_core.stages import standing
from customdiff_core.weights import model_digest
from tasks.stores import store


def chosen(kind: str, key: str | None, concept: str, profile: Profile) -> Artifact:
    """Return the artifact with this key, or the newest of this kind for the concept and the profile's base model.

    Raises:
        StoreError: if there is none.
    """
    if key:
        return store().get(kind, key)
    return store().newest(kind, inputs=_of(profile), concept=concept, profile=profile.name)


def regularization_of(concept: Concept, key: str | None, profile: Profile) -> Artifact:
    """Return the regularization images with this key, or the newest of the class prompt: concepts that have one share them.

    Raises:
        StoreError: if there are none.
    """
    if key:
        return store().get("regularization", key)
    return store().newest("regularization", inputs={"class_prompt": concept.class_prompt}, profile=profile.name)


def training_set_of(concept: Concept, key: str | None, method: str, profile: Profile) -> Artifact:
    """Return the training set with this key, or the newest of these pictures in these words, with the method's views, encoded
    by the profile's base model.

    Raises:
        StoreError: if there is none.
    """
    if key:
        return store().get("training_set", key)
    try:
        views = {"random_resize": profile.views(method).random_resize}
        inputs = {"concept": concept.digest} | _of(profile)
        return store().newest("training_set", inputs=inputs, config=views, profile=profile.name)
    except MissingError as error:
        raise MissingError(
            f"training_set: found none of {concept.noun} in {store().root}, need one; run augment/stage of this concept and "
            "method, or give a key"
        ) from error


def _of(profile: Profile) -> dict[str, str]:
    """The base model among an artifact's inputs, as it is now."""
    return {"model": model_digest(profile.model)}


def taken(name: str, profile: Profile) -> Artifact:
    """Return a delta by the concept's name (the one that it stands for) or by its key.

    Raises:
        ConfigError: for what is neither; StoreError: if there is none.
    """
    known = concepts.names()
    if name not in known and not is_key(name):
        raise ConfigError(
            f"delta: found {name!r}, need a concept ({', '.join(known)}) or a delta's key{did_you_mean(name, known)}; files are "
            "taken in by compose"
        )
    return standing(name, profile, store()) if name in known else store().get("delta", name)


def taken_in(names: Sequence[str], profile: Profile, stated: Stated) -> dict[str, Artifact]:
    """Return the deltas of those names that are keys, or other programs' files, each with what is stated of it.

    Raises:
        ConfigError, DeltaError, StoreError: if too little is stated, a file cannot be taken, or nothing has the key.
    """
    there = {name: store().get("delta", name) for name in names if is_key(name)}
    files = [name for name in names if name not in there and concepts.is_file(name)]
    shares = stated.shared_by(len(files)) if files else []
    return there | {
        name: tasks.merge.import_delta(Path(name), profile, one) for name, one in zip(files, shares, strict=True)
    }


def known_to(delta: Artifact) -> tuple[Concept, ...]:
    """Return what a delta was taught, with the pictures that are in data/concepts."""
    return tuple(concepts.of_taught(one) for one in lineage_of(delta, store()).concepts)


def as_taught(concept: Concept, delta: Artifact) -> Concept:
    """Return the concept as a delta that was taught it calls it."""
    return concepts.as_taught(concept, lineage_of(delta, store()))


def called_in(merged: Artifact, came: Sequence[tuple[Artifact, Concept]]) -> tuple[str, ...]:
    """Return how the prompts of a merged model say concepts that came in these deltas."""
    now = tokens_now(tables.read(store(), merged, "rows"))
    return tuple(
        one.model_copy(update={"modifier_token": now[part.sha256, one.modifier_token]}).noun for part, one in came
    )
