"""Forget a picture that somebody asks to be removed: it, what was made from it, and any future wish to fetch it."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from customdiff_core import images
from customdiff_core.artifacts import Artifact, Manifest, Store
from customdiff_core.errors import RetrievalError
from customdiff_core.evaluation import embeddings
from customdiff_core.retrieval.fetch import url_digest
from customdiff_core.retrieval.img2dataset import FOLDER, LINKS
from customdiff_core.retrieval.known import forgotten, remember_forgotten

SOURCE = "regularization"
WITHDRAWN = (SOURCE, "training_set", "delta")  # of which nothing may be made any more


@dataclass(frozen=True)
class Forgotten:
    """What a request removes.

    Args:
        digest: the link's SHA-256, which alone is kept, so that it is never fetched again.
        artifacts: those that hold the picture, and all that were made from them; the vectors of their images go too.
        folders: half-finished work that holds it: pictures of broken-off retrievals, checkpoints of trainings.
        producers: the runs that made them, whose pages in the UI may show it.
    """

    digest: str
    artifacts: tuple[Artifact, ...]
    folders: tuple[Path, ...]
    producers: tuple[str, ...]


def plan(url: str, store: Store) -> Forgotten:
    """Find what `forget` would remove; changes nothing.

    Args:
        url: the picture's link, as the regularization set has it.
        store: where to look.

    Raises:
        RetrievalError: for an empty link, which pictures beside an index have.
    """
    if not url.strip():
        raise RetrievalError(
            "forget: found an empty link, need the picture's, as regularization.parquet has it; give it"
        )
    digest = url_digest(url)
    manifests = [one for kind in _kinds(store) for one in store.manifests(kind)]
    withdrawn = store.withdrawn  # by an earlier wish, whose sweep this was too late for
    found = {
        one.artifact.key: one
        for one in manifests
        if _holds(store.path(one.artifact), url) or not withdrawn.isdisjoint(one.recipe.inputs.values())
    }
    while grown := {
        one.artifact.key: one for one in manifests if one.artifact.key not in found and _made_from(one, found.values())
    }:
        found |= grown
    found |= {one.artifact.key: one for one in _nights(manifests, found, store)}
    scratch = store.root / "checkpoints"
    folders = [path for path in scratch.glob(f"{SOURCE}/*") if _shelved(path, url)]
    folders += [path for one in found.values() if (path := scratch / one.recipe.kind / one.recipe.base_key).is_dir()]
    folders += store.unfinished(withdrawn | {one.artifact.sha256 for one in found.values()})
    # What was set aside as damaged is no artifact any more, but may hold the picture all the same.
    folders += [path for path in (store.root / "damaged").glob(f"{SOURCE}-*") if _holds(path, url)]
    producers = dict.fromkeys(one.producer for one in found.values())
    return Forgotten(
        digest, tuple(one.artifact for one in found.values()), tuple(dict.fromkeys(folders)), tuple(producers)
    )


def forget(url: str, store: Store) -> Forgotten:
    """Remove a picture and everything made from it, and never fetch it again.

    A regularization set that held it is made anew, without it, when it is needed next. The index still lists the link. What is
    being made from it meanwhile is not kept: a retrieval looks at the wishes, and the store at what was withdrawn, when done.

    Args:
        url: the picture's link.
        store: where it is.

    Returns:
        What was removed.

    Raises:
        RetrievalError: for an empty link, or if the store knows nothing of this one and has not forgotten it before.
    """
    planned = plan(url, store)
    if not planned.artifacts and not planned.folders and planned.digest not in forgotten(store):
        raise RetrievalError(
            f"forget: found nothing of {url} in {store.root}, need the link as regularization.parquet has it; copy it from there"
        )
    remember_forgotten(store, planned.digest)
    # Again, until nothing is found that was ended meanwhile: what ends from now on is refused.
    planned = plan(url, store)
    while fresh := [one for one in planned.artifacts if _is_fresh(one, store)]:
        store.withdraw(fresh)
        planned = plan(url, store)
    try:
        seen = {digest for artifact in planned.artifacts for digest in _images(store.path(artifact))}
    except (pa.ArrowException, OSError):
        seen = None  # a damaged table does not say what it held
    embeddings.forget(seen, store)
    for artifact in planned.artifacts:
        store.remove(artifact)
    for folder in planned.folders:
        shutil.rmtree(folder, ignore_errors=True)
    return planned


def _is_fresh(artifact: Artifact, store: Store) -> bool:
    return artifact.kind in WITHDRAWN and artifact.sha256 not in store.withdrawn


def _shelved(shelf: Path, url: str) -> bool:
    """Whether a broken-off retrieval has the picture, or was just fetching it."""
    if (shelf / "pictures" / f"{url_digest(url)}.json").exists():
        return True
    return any(_lists(path, url) for path in shelf.glob(f"{FOLDER}/*/{LINKS}"))


def _kinds(store: Store) -> list[str]:
    names = [path.name for path in store.root.glob("*") if path.is_dir()]
    return [name for name in names if name not in ("checkpoints", "damaged")]


def _holds(folder: Path, url: str) -> bool:
    path = folder / f"{SOURCE}.parquet"
    return path.exists() and _lists(path, url)


def _lists(path: Path, url: str) -> bool:
    """Whether a table has a link; one that cannot be read may have it, and what is made from it can be made again."""
    try:
        return url in pq.read_table(path, columns=["url"])["url"].to_pylist()
    except (pa.ArrowException, OSError):
        return True


def _images(folder: Path) -> set[str]:
    """The digests of all images in an artifact's tables."""
    tables = [path for path in folder.glob("*.parquet") if "image" in pq.read_schema(path).names]
    found = (pq.read_table(path, columns=["image"])["image"].to_pylist() for path in tables)
    return {images.digest(one) for column in found for one in column if isinstance(one, bytes)}


def _nights(manifests: Sequence[Manifest], found: Mapping[str, Manifest], store: Store) -> list[Manifest]:
    """Pages of benchmark nights that show what these trainings drew; a night's figures are no pictures, and stay.

    Of nights so old that their trainings are gone (`keep_nights`) nobody knows what they were made from.
    """
    showing = {
        one.artifact.sha256 for one in manifests if one.recipe.kind == "cell" and _drawn(one, store) & found.keys()
    }
    nights = [one for one in manifests if one.recipe.kind == "benchmark" and showing & set(one.recipe.inputs.values())]
    return [one for one in manifests if one.recipe.kind == "report" and _made_from(one, nights)]


def _drawn(cell: Manifest, store: Store) -> set[str]:
    """The keys of the training and the images that a cell measured."""
    path = store.path(cell.artifact) / "sources.parquet"
    try:
        return set(pq.read_table(path, columns=["key"])["key"].to_pylist())
    except (pa.ArrowException, OSError):  # damaged: it is set aside when it is asked for
        return set()


def _made_from(manifest: Manifest, found: Iterable[Manifest]) -> bool:
    return not {one.artifact.sha256 for one in found}.isdisjoint(manifest.recipe.inputs.values())
