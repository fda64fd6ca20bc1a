"""One prompt's candidates: searched deeper, and fetched in rounds, until enough of them are pictures."""

from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from customdiff_core import images
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import RetrieveConfig, Runtime
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress
from customdiff_core.retrieval.account import ATTEMPTS, Account
from customdiff_core.retrieval.encoder import Encoder
from customdiff_core.retrieval.fetch import Link, Shelf, fetch, url_digest
from customdiff_core.retrieval.img2dataset import fetch as fetch_many
from customdiff_core.retrieval.known import forgotten, restock
from customdiff_core.retrieval.metadata import Vectors
from customdiff_core.retrieval.select import mark_after, mark_before, overfetch
from customdiff_core.retrieval.sources import Source, open_source, search

LEAST_SURVIVAL = 0.05  # of links, in planning a round: none alive so far is no reason to try millions


@dataclass(frozen=True)
class Note:
    """What the rules need to know of a picture on the shelf."""

    sha256: str
    phash: int
    shorter: int


class Session:
    """What the prompts of one pass share: the encoder, the opened source and the pictures."""

    def __init__(
        self,
        index: Artifact | None,
        profile: Profile,
        config: RetrieveConfig,
        store: Store,
        runtime: Runtime,
        progress: Progress,
    ) -> None:
        self.profile, self.config, self.store, self.runtime, self.progress = profile, config, store, runtime, progress
        self._index = index
        self.side = profile.augment.resolution
        self.shelves: list[Shelf] = []
        self._vectors: dict[str, npt.NDArray[np.float32]] = {}

    @cached_property
    def encoder(self) -> Encoder:
        """The retrieval CLIP."""
        return Encoder(self.profile.retrieval_encoder, self.runtime.device)

    @cached_property
    def source(self) -> Source:
        """The source, once it is known to fit the encoder."""
        source = open_source(self._index, self.profile, self.config, self.store)
        source.check(self.encoder)
        return source

    @cached_property
    def forgotten(self) -> frozenset[str]:
        """Digests of links that nobody may fetch again."""
        return forgotten(self.store)

    def candidates(self, prompt: str, vector: Vectors, depth: int) -> pd.DataFrame:
        """Search, and rank by what captions say, whatever index found them: columns of `Source.rows` and of the artifact.

        A quantized index and one of images only find candidates: the similarity by which they are ranked is that of the
        caption's own embedding, so that a threshold means the same for every source.
        """
        hits = search(self.source, vector, depth)
        missing = sorted(set(hits["caption"]) - set(self._vectors))
        self._vectors |= dict(zip(missing, self.encoder.texts(missing), strict=True))
        cosines = [float(self._vectors[caption] @ vector[0]) for caption in hits["caption"]]
        hits["similarity"] = np.round(np.asarray(cosines, np.float64), 4)
        hits = hits.sort_values(["similarity", "item_id"], ascending=[False, True], kind="stable", ignore_index=True)
        return hits.assign(cand_id=range(len(hits)), rank=range(len(hits)), prompt=prompt, source=self.source.name)


class Gathered:
    """A prompt's candidates with the rules applied, and the pictures of those that have one."""

    def __init__(self, session: Session, shelf: Shelf) -> None:
        self._session, self._shelf = session, shelf
        self._vectors: dict[int, npt.NDArray[np.float32]] = {}
        self.table = pd.DataFrame()
        self.links: dict[int, Link] = {}
        self.failures: dict[int, str] = {}

    def take_in(self, hits: pd.DataFrame) -> None:
        """Replace the candidates by those of a deeper search."""
        self._hits = hits
        self.links = {link.item_id: link for link in map(self._link, hits.to_dict("records"))}
        session = self._session
        restock(self.links.values(), self._shelf, session.store, session.side, session.config.fetch, session.shelves)
        self.judge()

    def judge(self) -> None:
        """Apply the rules to what is known now."""
        config, gone = self._session.config, self._session.forgotten
        ids = frozenset(item for item, link in self.links.items() if link.url and url_digest(link.url) in gone)
        self.table = mark_after(
            mark_before(self._hits, config, ids), self._pictures, self.failures, config, self._embed
        )

    @property
    def _pictures(self) -> dict[int, Note]:
        found = ((item, self._shelf.notes.get(link.digest)) for item, link in self.links.items())
        return {item: _note(note) for item, note in found if note is not None}

    @property
    def usable(self) -> frozenset[int]:
        """Item ids of which there is a picture."""
        return frozenset(self._pictures)

    def due(self) -> tuple[list[Link], int]:
        """Return the links to try now, best-ranked first, and how many of them are wanted.

        Also when there are enough pictures: links that rank above the last of those must be tried before it is taken.
        """
        count, usable = self._session.config.count, self.usable
        open_ = [int(item) for item in self.table.loc[self.table["drop_reason"] == "", "item_id"]]
        have = [place for place, item in enumerate(open_) if item in usable]
        untried = [(place, self.links[item]) for place, item in enumerate(open_) if item not in usable]
        if len(have) >= count:
            return [link for place, link in untried if place < have[count - 1]], 0
        wanted = overfetch(count - len(have), max(self._survival(), LEAST_SURVIVAL))
        return [link for _, link in untried[:wanted]], wanted

    def _survival(self) -> float:
        """The share of links that give a picture that is kept: as expected, and once some were tried, as seen."""
        tried = [item for item, link in self.links.items() if link in self._shelf or item in self.failures]
        if not tried:
            local = all(link.read is not None for link in self.links.values())
            return 1.0 if local else self._session.config.fetch.survival
        reasons = dict(zip(self.table["item_id"], self.table["drop_reason"], strict=True))
        return sum(not reasons[item] for item in tried) / len(tried)

    def account(self) -> Account:
        """Every candidate and every try: what candidates.parquet and attempts.parquet hold."""
        places = dict(zip(self.table["item_id"], self.table["cand_id"], strict=True))
        rows = [
            asdict(one) | {"cand_id": int(places[one.item_id])}
            for one in self._shelf.attempts()
            if one.item_id in places
        ]
        return Account(self.table, pd.DataFrame(rows).reindex(columns=pd.Index(ATTEMPTS)))

    def _link(self, hit: dict[str, Any]) -> Link:
        """The file beside the index where it is there, else what the backend sent, else the address."""
        item, url, path, sent = int(hit["item_id"]), str(hit["url"]), str(hit["image_path"]), hit["image"]
        elsewhere = bool(url) or isinstance(sent, bytes)
        if path and (not elsewhere or self._session.source.has(path)):
            return Link(item, url, partial(self._session.source.read, path), f"{path}:{hit['caption']}")
        if isinstance(sent, bytes):
            return Link(item, url, lambda: sent, images.digest(sent))
        return Link(item, url)

    def _embed(self, item: int) -> npt.NDArray[np.float32]:
        if item not in self._vectors:
            picture = images.open_trusted(self._shelf.picture(self.links[item]).png)
            self._vectors[item] = self._session.encoder.images([picture])[0]
        return self._vectors[item]


def _note(kept: dict[str, Any]) -> Note:
    return Note(kept["sha256"], kept["phash"], min(kept["width"], kept["height"]))


def gather(prompt: str, session: Session, shelf: Shelf) -> Gathered:
    """Search and fetch until there are `count` pictures that no rule drops, or nothing is left to try.

    Args:
        prompt: the class prompt.
        session: of this pass.
        shelf: holds what earlier, broken runs fetched.

    Raises:
        RetrievalError: if the source fails; the shelf keeps what was fetched.
    """
    config = session.config
    vector = session.encoder.texts([prompt])
    depth, round_ = max(config.candidates, config.count), 0
    gathered = Gathered(session, shelf)
    gathered.take_in(session.candidates(prompt, vector, depth))
    while round_ < config.fetch.rounds:
        links, wanted = gathered.due()
        if len(links) < wanted and _worth_deepening(gathered.table, depth, config):
            depth = min(2 * depth, config.deepest)
            gathered.take_in(session.candidates(prompt, vector, depth))
            continue
        if not links:
            break
        method = fetch if config.fetch.fetcher == "pool" else fetch_many
        gathered.failures |= method(links, shelf, config.fetch, session.runtime, round_, session.side, session.progress)
        gathered.judge()
        round_ += 1
    return gathered


def _worth_deepening(table: pd.DataFrame, depth: int, config: RetrieveConfig) -> bool:
    """Whether a deeper search may find more: the last one was full, and not all of its farther half was too dissimilar."""
    if len(table) < depth or depth >= config.deepest:
        return False
    farther = table["drop_reason"].tail(len(table) // 2)
    return not farther.str.startswith("similarity").all()
