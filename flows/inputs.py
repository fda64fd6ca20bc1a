"""A stage run alone takes its input by key, or the newest of its kind for the concept."""

from customdiff_core.artifacts import Artifact
from customdiff_core.profiles import Profile
from tasks.stores import store


def chosen(kind: str, key: str | None, concept: str, profile: Profile) -> Artifact:
    """Return the artifact with this key, or the newest of this kind for the concept and profile.

    Raises:
        StoreError: if there is none.
    """
    return store().get(kind, key) if key else store().newest(kind, concept=concept, profile=profile.name)
