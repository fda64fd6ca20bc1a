"""A stage run alone takes its input by key, or the newest of its kind for the concept; a delta also from a file."""

from pathlib import Path

import tasks.merge
from customdiff_core import concepts
from customdiff_core.artifacts import Artifact
from customdiff_core.concepts import Concept
from customdiff_core.config import Stated
from customdiff_core.finetuning import methods
from customdiff_core.profiles import Profile
from tasks.stores import store


def chosen(kind: str, key: str | None, concept: str, profile: Profile) -> Artifact:
    """Return the artifact with this key, or the newest of this kind for the concept and profile.

    Raises:
        StoreError: if there is none.
    """
    return store().get(kind, key) if key else store().newest(kind, concept=concept, profile=profile.name)


def taken(name: str, profile: Profile, stated: Stated) -> Artifact:
    """Return a delta by the concept's name, by its key, or from another program's file.

    Raises:
        StoreError, DeltaError: if there is none, or the file cannot be taken.
    """
    if is_file(name):
        return tasks.merge.import_delta(Path(name), profile, stated)
    return chosen("delta", None if name in concepts.names() else name, name, profile)


def is_file(name: str) -> bool:
    """Whether somebody means a file and not a concept."""
    return "/" in name or Path(name).exists()


def as_taught(concept: Concept, delta: Artifact) -> Concept:
    """Return the concept as the method that made a delta says it."""
    method = store().manifest(delta).recipe.config.get("method", "")
    return methods.get(method).words(concept) if method in methods.METHODS else concept
