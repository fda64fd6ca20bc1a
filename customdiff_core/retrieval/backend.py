"""The JSON API of a self-hosted `clip-retrieval back`, with an end to its patience.

Vectors go to /knn-service, ids to /metadata. What the backend filters by itself (`BackendConfig`) is off by default: its
duplicates are connected components at a cosine of 0.94, which chain, and it does not say what it dropped.
"""

import base64
import math
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
from pydantic import BaseModel, TypeAdapter, ValidationError

from customdiff_core import images
from customdiff_core.config import BackendConfig
from customdiff_core.errors import ImageError, RetrievalError
from customdiff_core.retrieval.metadata import Ids, Vectors, columns_of, plain
from customdiff_core.retrieval.sources import Similarities, TextEncoder

TIMEOUT = httpx.Timeout(30.0, connect=3.0)
TRIES = 3
PAUSE = 0.5  # seconds before the second try, doubled before each further one
CRASHED = 500  # how it answers whatever goes wrong inside
PASSING = frozenset({429, 502, 503, 504})  # answers after which another try may succeed
METADATA_BATCH = 500  # ids asked for at a time


class Hit(BaseModel):
    """What is needed of one answer; the rest is ignored."""

    id: int
    similarity: float


class Row(BaseModel):
    """The metadata of one id."""

    id: int
    metadata: dict[str, Any]


HITS, ROWS, NAMES = TypeAdapter(list[Hit]), TypeAdapter(list[Row]), TypeAdapter(list[str])


class BackendSource:
    """A running `clip-retrieval back`.

    Args:
        url: its address, such as http://localhost:1234.
        config: which of its indices and filters.
        folder: where images with an `image_path` lie; None: what the backend itself sends is taken.
    """

    name = "backend"

    def __init__(self, url: str, config: BackendConfig, folder: Path | None = None) -> None:
        self.url, self.config, self.folder = url.rstrip("/"), config, folder
        self.filtered = config.deduplicate or config.safety_model or config.violence_detector
        self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT, trust_env=False)
        self._index_name = ""

    def check(self, encoder: TextEncoder) -> None:
        """Refuse an address that is no backend, an index that it has not, and a width that is not its own."""
        names = self._parse(NAMES, self._ask("GET", "/indices-list"))
        if not names or (self.config.index_name and self.config.index_name not in names):
            raise RetrievalError(
                f"backend {self.url}: found indices {', '.join(names) or 'none'}, need {self.config.index_name or 'one'}; "
                "correct retrieve.backend.index_name"
            )
        self._index_name = self.config.index_name or names[0]
        self.nearest(encoder.texts(["a photo"]), 1)

    def nearest(self, vector: Vectors, count: int) -> tuple[Ids, Similarities]:
        """See `Source`."""
        body = {
            "embedding_input": vector[0].astype(float).tolist(),
            "modality": self.config.modality,
            "num_images": 1,  # with metadata: the others' is asked for once it is known which are needed
            "num_result_ids": count,
            "indice_name": self._index_name,
            "deduplicate": self.config.deduplicate,
            "use_safety_model": self.config.safety_model,
            "use_violence_detector": self.config.violence_detector,
        }
        hits = self._parse(HITS, self._ask("POST", "/knn-service", body))
        if not all(math.isfinite(hit.similarity) for hit in hits):
            raise RetrievalError(
                f"backend {self.url}: found a similarity that is no number, need numbers; build its index again"
            )
        return np.array([hit.id for hit in hits], np.int64), np.array([hit.similarity for hit in hits], np.float64)

    def rows(self, ids: Ids) -> pd.DataFrame:
        """See `Source`."""
        found: list[Row] = []
        for start in range(0, len(ids), METADATA_BATCH):
            part = ids[start : start + METADATA_BATCH].tolist()
            rows = self._parse(ROWS, self._ask("POST", "/metadata", {"ids": part, "indice_name": self._index_name}))
            if [row.id for row in rows] != part:
                raise RetrievalError(
                    f"backend {self.url}: found metadata of other ids than asked for, need theirs; update it"
                )
            found += rows
        table = pd.DataFrame([row.metadata for row in found])
        columns = columns_of([str(name) for name in table.columns])
        if found and "caption" not in columns:
            raise RetrievalError(
                f"backend {self.url}: found no caption in its metadata, need it; start it with caption in --columns_to_return"
            )
        sent = table["image"].map(_decoded) if "image" in table.columns else None
        return plain(table, columns).assign(image=sent)

    def has(self, image_path: str) -> bool:
        """See `Source`."""
        return self.folder is not None and images.lies_in(self.folder / image_path, self.folder)

    def read(self, image_path: str) -> bytes:
        """See `Source`."""
        if self.folder is None:
            raise ImageError(
                f"{image_path}: found no folder for it, need the backend's images; give their index folder as model.index"
            )
        return images.read_picture(self.folder / image_path, self.folder)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Ask, and again after what may pass."""
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            try:
                answer = self._client.request(method, path, json=body)
            except httpx.TransportError as error:
                if last:
                    raise RetrievalError(
                        f"backend {self.url}: found no answer ({type(error).__name__}: {error}) in {TRIES} tries, need a running "
                        "clip-retrieval back; start it and retry this run: what was fetched is kept"
                    ) from error
            else:
                if answer.status_code not in PASSING or last:
                    return self._checked(answer, path)
            time.sleep(PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def _checked(self, answer: httpx.Response, path: str) -> httpx.Response:
        """Recognise its error answers: a JSON object with a message, and the status of a crash within."""
        if answer.is_success:
            return answer
        hint = "update or restart it"
        if path == "/knn-service" and answer.status_code == CRASHED:
            hint = (
                f"it has no {self.config.modality} index, or one made with another encoder than the profile's; "
                "correct retrieve.backend or the profile, or read its log"
            )
        raise RetrievalError(
            f"backend {self.url}{path}: found status {answer.status_code} ({_message(answer)}), need 200; {hint}"
        )

    def _parse(self, kind: TypeAdapter[Any], answer: httpx.Response) -> Any:
        try:
            return kind.validate_python(answer.json())
        except (ValueError, ValidationError) as error:
            raise RetrievalError(
                f"backend {self.url}: found an answer that is not clip-retrieval's ({_message(answer)}), need its JSON; "
                "correct model.backend"
            ) from error


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return " ".join(answer.text.split())[:80] or "no text"


def _decoded(value: Any) -> bytes | None:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except ValueError:
        return None
