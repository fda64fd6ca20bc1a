"""What the store knows of links already: pictures that need not be fetched again, and links that must not."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from filelock import FileLock

from customdiff_core import images
from customdiff_core.artifacts import Store, write_atomic
from customdiff_core.config import FetchConfig
from customdiff_core.retrieval.decoder import Picture, perceptual_hash
from customdiff_core.retrieval.fetch import Attempt, Link, Shelf, url_digest

FORGOTTEN = "forgotten.json"


def restock(
    links: Iterable[Link], shelf: Shelf, store: Store, side: int, fetch: FetchConfig, others: Sequence[Shelf] = ()
) -> None:
    """Put onto the shelf what other artifacts, and other shelves of this pass, have of these links.

    Args:
        links: by rank; images beside the index are read anew.
        shelf: where they go.
        store: whose `regularization` artifacts are looked through, by the digests of their URLs.
        side: shorter side of a kept picture: one that was kept at another size is fetched again.
        fetch: what a link may cost now: what was fetched under laxer rules is fetched again.
        others: shelves of prompts that came before.
    """
    wanted: dict[str, Link] = {}
    for link in links:
        if link.read is None and link not in shelf:
            wanted.setdefault(link.digest, link)  # of two with one address the better is kept
    for other in others:
        for link in [link for link in wanted.values() if link in other]:
            _put(link, other.picture(link), int(other.notes[link.digest]["round"]), shelf)
            del wanted[link.digest]
    for folder in _alike(store, side, fetch) if wanted else ():
        path = folder / "regularization.parquet"
        urls = pq.read_table(path, columns=["url"])["url"].to_pylist()
        rows = {digest: row for row, url in enumerate(urls) if url and (digest := url_digest(url)) in wanted}
        if rows:
            table = pd.read_parquet(path, columns=["image", "source_sha256", "width", "height", "round"])
            for digest, row in rows.items():
                found = table.iloc[row]
                phash = perceptual_hash(images.open_trusted(found["image"]))
                size = int(found["width"]), int(found["height"])
                picture = Picture(found["image"], str(found["source_sha256"]), *size, phash)
                _put(wanted.pop(digest), picture, int(found["round"]), shelf)


def forgotten(store: Store) -> frozenset[str]:
    """Digests of the links whose removal somebody asked for."""
    path = store.root / FORGOTTEN
    return frozenset(json.loads(path.read_text())) if path.exists() else frozenset()


def remember_forgotten(store: Store, digest: str) -> None:
    """Note that a link must never be fetched again; its digest, and not the link."""
    store.root.mkdir(parents=True, exist_ok=True)
    path: Path = store.root / FORGOTTEN
    with FileLock(path.with_name(f".{FORGOTTEN}.lock")):  # of two at a time, neither may be lost
        write_atomic(path, json.dumps(sorted(forgotten(store) | {digest})).encode())


def _put(link: Link, picture: Picture, round_: int, shelf: Shelf) -> None:
    """Onto the shelf, and into its account as one that was there from before."""
    shelf.put(link, picture, round_)
    shelf.log(Attempt(link.item_id, link.url, "", "kept", "", 0.0, round_, 0))


def _alike(store: Store, side: int, fetch: FetchConfig) -> list[Path]:
    """Sets of the same size under rules as strict: opted-out or huge pictures of others must not come in this way."""

    def strict(config: Mapping[str, Any]) -> bool:
        before, usual = config.get("fetch", {}), FetchConfig()  # of whatever version of this program
        honoured = before.get("opt_out", usual.opt_out) or not fetch.opt_out
        limits = (
            before.get(name, getattr(usual, name)) <= getattr(fetch, name) for name in ("max_bytes", "max_pixels")
        )
        return honoured and all(limits)

    configs = ((one, one.recipe.config) for one in store.manifests("regularization"))
    found = [one for one, config in configs if config.get("side") == side and strict(config)]
    whole = [store.path(one.artifact) for one in sorted(found, key=lambda one: one.created, reverse=True)]
    return [folder for folder in whole if not store.problems(folder)]
