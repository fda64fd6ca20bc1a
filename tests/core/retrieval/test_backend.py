"""The real `clip-retrieval back`, and what it answers when something is wrong."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from customdiff_core import profiles, tables
from customdiff_core.config import BackendConfig, RetrieveConfig
from customdiff_core.errors import RetrievalError
from customdiff_core.retrieval import backend
from customdiff_core.retrieval.backend import BackendSource
from customdiff_core.retrieval.encoder import Encoder
from customdiff_core.retrieval.local import LocalSource
from customdiff_core.retrieval.retrieve import retrieve
from customdiff_core.retrieval.sources import search
from deployments.backend import running


@pytest.fixture(scope="module")
def url(chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(chain.store.path(chain.index), tmp_path_factory.mktemp("back")) as (address, _):
        yield address


@pytest.fixture(scope="module")
def encoder(openmoji) -> Encoder:
    return Encoder(openmoji.retrieval_encoder, "cpu")


def test_three_sources_give_the_same_two_hundred_in_the_same_order(url: str, chain, cat, store):
    folder = chain.store.path(chain.index)
    sources = {
        "embedded": (chain.index, chain.profile, chain.store),
        "local": (None, profiles.get("openmoji", index=folder), store),
        "backend": (None, profiles.get("openmoji", index=folder, backend=url), store),
    }
    found = {}
    for name, (index, profile, where) in sources.items():
        made = retrieve(cat, index, profile, RetrieveConfig(), store=where)
        candidates = tables.read(where, made, "candidates")
        assert set(candidates["source"]) == {name}
        kept = candidates[candidates["drop_reason"] == ""]
        found[name] = (kept["item_id"].tolist(), tables.read(where, made, "regularization")["source_sha256"].tolist())
        columns = set(candidates.columns)
        assert found.setdefault("columns", columns) == columns
    assert len(found["embedded"][0]) == 200
    assert found["local"] == found["embedded"]
    assert found["backend"] == found["embedded"]


def test_hits_and_similarities_are_those_of_the_folder(url: str, chain, encoder: Encoder):
    vector = encoder.texts(["photo of a dog"])
    source = BackendSource(url, BackendConfig())
    source.check(encoder)
    here = search(LocalSource(chain.store.path(chain.index)), vector, 120)
    there = search(source, vector, 120)
    for column in ("item_id", "index_similarity", "caption", "image_path", "url"):
        assert there[column].tolist() == here[column].tolist()


def test_its_deduplication_drops_hits_and_the_search_ends_all_the_same(url: str, encoder: Encoder):
    vector = encoder.texts(["photo of a cat"])
    source = BackendSource(url, BackendConfig(deduplicate=True))
    source.check(encoder)
    assert source.filtered
    everything = search(source, vector, 1200)
    assert 0 < len(everything) < 1200
    assert everything["item_id"].is_unique


def test_an_index_that_it_has_not_is_named(url: str, encoder: Encoder):
    with pytest.raises(RetrievalError) as error:
        BackendSource(url, BackendConfig(index_name="laion5b")).check(encoder)
    assert str(error.value) == (f"backend {url}: found indices main, need laion5b; correct retrieve.backend.index_name")


def test_a_vector_that_its_index_cannot_take_is_explained(url: str, encoder: Encoder):
    source = BackendSource(url, BackendConfig())
    source.check(encoder)
    with pytest.raises(RetrievalError) as error:
        source.nearest(np.ones((1, 7), np.float32), 3)
    assert str(error.value) == (
        f"backend {url}/knn-service: found status 500 (Internal Server Error), need 200; it has no text index, or one made with "
        "another encoder than the profile's; correct retrieve.backend or the profile, or read its log"
    )


def test_a_dead_one_is_named_after_a_few_tries_and_what_was_fetched_is_kept(
    chain, openmoji, cat, store, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backend, "PAUSE", 0.01)
    with pytest.raises(
        RetrievalError, match=r"backend http://127\.0\.0\.1:9: found no answer \(ConnectError.*\) in 3 tries"
    ):
        retrieve(cat, None, profiles.get("openmoji", backend="http://127.0.0.1:9"), RetrieveConfig(), store=store)


# Answers that a real one gives only on bad days


@contextmanager
def answering(answer: Callable[[int], tuple[int, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A server whose n-th answer is `answer(n)`."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answer(len(asked))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_asked_again(status: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "PAUSE", 0.01)
    hits = json.dumps([{"id": 4, "similarity": 0.5, "caption": "a cat"}]).encode()
    with answering(lambda number: (status, b"") if number < 3 else (200, hits)) as (url, asked):
        ids, similarity = BackendSource(url, BackendConfig()).nearest(np.ones((1, 2), np.float32), 1)
    assert (ids.tolist(), similarity.tolist(), len(asked)) == ([4], [0.5], 3)


@pytest.mark.parametrize("status", [400, 404, 500])
def test_what_will_not_pass_is_asked_once(status: int):
    with answering(lambda _: (status, b'{"message": "no such thing"}')) as (url, asked):
        with pytest.raises(RetrievalError, match=rf"found status {status} \(no such thing\), need 200"):
            BackendSource(url, BackendConfig()).rows(np.array([1]))
        assert len(asked) == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>hello</html>", "<html>hello</html>"),
        (b'{"message": "loading"}', "loading"),
        (b'[{"id": "x"}]', r'\[\{"id": "x"\}\]'),
    ],
)
def test_an_answer_that_is_not_its_own_is_refused(body: bytes, words: str):
    with (
        answering(lambda _: (200, body)) as (url, _),
        pytest.raises(
            RetrievalError, match=rf"found an answer that is not clip-retrieval's \({words}\), need its JSON"
        ),
    ):
        BackendSource(url, BackendConfig()).nearest(np.ones((1, 2), np.float32), 1)


def test_a_similarity_that_is_no_number_is_refused():
    with (
        answering(lambda _: (200, b'[{"id": 1, "similarity": NaN}]')) as (url, _),
        pytest.raises(RetrievalError, match="found a similarity that is no number"),
    ):
        BackendSource(url, BackendConfig()).nearest(np.ones((1, 2), np.float32), 1)


def test_metadata_of_other_ids_and_without_captions_is_refused():
    for body, words in (
        (b'[{"id": 9, "metadata": {"caption": "x"}}]', "found metadata of other ids"),
        (b'[{"id": 1, "metadata": {"url": "x"}}]', "found no caption in its metadata"),
    ):
        with answering(lambda _, body=body: (200, body)) as (url, _), pytest.raises(RetrievalError, match=words):
            BackendSource(url, BackendConfig()).rows(np.array([1]))


def test_images_that_it_sends_are_taken_when_their_folder_is_not_here():
    body = b'[{"id": 1, "metadata": {"caption": "x", "image_path": "a.png", "image": "aGVsbG8="}}]'
    with answering(lambda _: (200, body)) as (url, _):
        assert BackendSource(url, BackendConfig()).rows(np.array([1]))["image"][0] == b"hello"
