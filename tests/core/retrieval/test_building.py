"""Index folders of one's own: built in parts, gone on with after a crash, and opened by what searches them."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from customdiff_core.config import BuildConfig, RetrieveConfig, Runtime
from customdiff_core.errors import FetchError, RetrievalError
from customdiff_core.retrieval.building import build_folder
from customdiff_core.retrieval.captioned import link
from customdiff_core.retrieval.encoder import Encoder
from customdiff_core.retrieval.faiss_index import budget, build_faiss, index_key
from customdiff_core.retrieval.img2dataset import allowed
from customdiff_core.retrieval.local import LocalSource
from customdiff_core.retrieval.sources import search
from deployments.web import picture

WORDS = ["a cat", "a dog", "a rocket", "a pizza", "a house", "a bear", "a car"]


@pytest.fixture
def links(tmp_path: Path) -> Path:
    """Links as a data set lists them, with one that is none and one without a caption."""
    urls = [f"https://host.example/{number}.jpg" for number in range(7)] + [
        "file:///etc/passwd",
        "https://x.example/y.jpg",
    ]
    table = pd.DataFrame({"URL": urls, "TEXT": [*WORDS, "a trap", None], "pwatermark": [0.25] * 9})
    table.to_parquet(tmp_path / "links.parquet")
    return tmp_path / "links.parquet"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Pictures beside their captions, in two folders, with one that lies and one that says nothing."""
    for number, words in enumerate(WORDS):
        path = tmp_path / "pairs" / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
        path.with_suffix(".txt").write_text(words + "\n")
    (tmp_path / "pairs" / "bad.png").write_text("no picture")
    (tmp_path / "pairs" / "bad.txt").write_text("a lie")
    Image.new("RGB", (32, 32)).save(tmp_path / "pairs" / "silent.png")
    return tmp_path / "pairs"


def test_captions_alone_need_no_download(links: Path, openmoji, tmp_path: Path):
    config = BuildConfig(kind="urls", captions_only=True, shard=3)
    out = build_folder(links, tmp_path / "out", config, openmoji.retrieval_encoder)
    encoder = Encoder(openmoji.retrieval_encoder, "cpu")
    source = LocalSource(out)
    source.check(encoder)
    found = search(source, encoder.texts(["a rocket"]), 1).iloc[0]
    assert (found["caption"], found["url"], found["watermark"]) == ("a rocket", "https://host.example/2.jpg", 0.25)
    report = json.loads((out / "report.json").read_text())
    assert (report["links"], report["refused"], report["rows"], report["encoder"]) == (7, 2, 7, "openmoji-clip")
    assert not (out / "image.index").exists()
    assert len(list((out / "metadata").iterdir())) == 3
    assert not (tmp_path / "out.building").exists()
    assert torch.get_num_threads() == 1  # as it was: other computations in this process are not to change


def test_a_folder_of_pictures_and_captions(pairs: Path, openmoji, cat, store, tmp_path: Path):
    from customdiff_core import profiles, tables
    from customdiff_core.retrieval.retrieve import retrieve

    out = build_folder(pairs, tmp_path / "out", BuildConfig(kind="folder", shard=4), openmoji.retrieval_encoder)
    report = json.loads((out / "report.json").read_text())
    assert (report["rows"], report["without_caption"]) == (7, 1)
    assert re.search(r"bad\.png: found no picture", report["damaged"][0])
    assert (out / "image.index").exists()
    made = retrieve(
        cat, None, profiles.get("openmoji", index=out), RetrieveConfig(count=5, near_hash=None), store=store
    )
    assert tables.read(store, made, "regularization")["caption"][0] == "a cat"


def test_ready_embeddings_are_linked_and_not_copied(links: Path, openmoji, tmp_path: Path):
    first = build_folder(
        links, tmp_path / "first", BuildConfig(kind="urls", captions_only=True), openmoji.retrieval_encoder
    )
    again = build_folder(first, tmp_path / "again", BuildConfig(kind="embeddings"), openmoji.retrieval_encoder)
    one, other = (next((folder / "text_emb").iterdir()) for folder in (first, again))
    assert one.stat().st_ino == other.stat().st_ino
    assert len(LocalSource(again)) == 7


def test_a_crash_costs_one_part(links: Path, openmoji, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = BuildConfig(kind="urls", captions_only=True, shard=2)
    real, embedded = Encoder.texts, []

    def spy(self, texts):
        if len(embedded) == 4:
            raise KeyboardInterrupt
        embedded.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(Encoder, "texts", spy)
    with pytest.raises(KeyboardInterrupt):
        build_folder(links, tmp_path / "out", config, openmoji.retrieval_encoder)
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.building" / "metadata").glob("*.parquet"))) == 2
    (tmp_path / "out.building" / "text_emb" / "text_emb_00002.npy").write_bytes(b"half")  # what a kill leaves
    monkeypatch.setattr(Encoder, "texts", lambda self, texts: embedded.extend(texts) or real(self, texts))
    out = build_folder(links, tmp_path / "out", config, openmoji.retrieval_encoder)
    assert sorted(embedded) == sorted(WORDS)  # each once
    LocalSource(out).check(Encoder(openmoji.retrieval_encoder, "cpu"))


def test_half_built_with_other_settings_is_not_gone_on_with(links: Path, openmoji, tmp_path: Path):
    work = tmp_path / "out.building"
    work.mkdir()
    (work / "settings.json").write_text('"other"')
    with pytest.raises(RetrievalError) as error:
        build_folder(links, tmp_path / "out", BuildConfig(kind="urls", captions_only=True), openmoji.retrieval_encoder)
    assert str(error.value) == (
        f"index {work}: found it half built from another source, from files that changed since, or with other settings, need the "
        "same; remove it to begin anew"
    )


def test_half_built_from_files_that_changed_is_not_gone_on_with(openmoji, tmp_path: Path, monkeypatch):
    """Parts are told by their numbers: with a picture more, each part would begin elsewhere."""
    source = tmp_path / "pictures"
    source.mkdir()
    for name in "abc":
        (source / f"{name}.txt").write_text(f"a photo of {name}")
        (source / f"{name}.jpg").write_bytes(picture(ord(name)))
    config, out = BuildConfig(kind="folder", shard=2), source / "index"  # its own work is no change of the source
    real = Encoder.texts

    def interrupted(self, texts):
        if len(texts) == 1:
            raise KeyboardInterrupt
        return real(self, texts)

    monkeypatch.setattr(Encoder, "texts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_folder(source, out, config, openmoji.retrieval_encoder)
    with pytest.raises(KeyboardInterrupt):  # goes on
        build_folder(source, out, config, openmoji.retrieval_encoder)
    (source / "a.txt").write_text("another caption")
    with pytest.raises(RetrievalError, match="from files that changed since"):
        build_folder(source, out, config, openmoji.retrieval_encoder)


def test_a_copy_that_was_cut_off_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where disks differ, a file is copied: it has its name when it is whole."""
    source, target = tmp_path / "source.npy", tmp_path / "target.npy"
    source.write_bytes(b"whole")

    def full(path: Path, to: Path) -> None:
        Path(to).write_bytes(path.read_bytes()[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def no_link(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    with monkeypatch.context() as once:
        once.setattr(shutil, "copy", full)
        with pytest.raises(OSError, match="No space left"):
            link(source, target)
    assert not target.exists()
    link(source, target)
    assert target.read_bytes() == b"whole"


def test_an_index_that_a_killed_run_left_half_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """autofaiss may end without an index and without an error."""
    import autofaiss

    np.save(tmp_path / "part.npy", np.eye(4, dtype=np.float32))
    (tmp_path / "text_emb").mkdir()
    shutil.copy(tmp_path / "part.npy", tmp_path / "text_emb" / "text_emb_0000.npy")
    (tmp_path / "text.tmp").write_bytes(b"half")
    monkeypatch.setattr(autofaiss, "build_index", lambda *_, **__: (None, None))
    with pytest.raises(RetrievalError, match="found no index after autofaiss ended"):
        build_faiss(tmp_path, BuildConfig(kind="embeddings"), Runtime(), lambda *_: None)
    assert not (tmp_path / "text.index").exists()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost.",
        "x.localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "169.254.169.254",
        "169.254.169.254.",
        "[::1]",
    ],
)
def test_links_that_name_this_machine_or_a_private_one_are_no_links_for_img2dataset(host: str):
    with pytest.raises(FetchError):
        allowed(f"http://{host}/1.jpg")


def test_other_links_are_img2datasets_to_look_up():
    for host in ("host.example", "93.184.216.34", "1.example"):
        allowed(f"https://{host}/1.jpg")


def test_a_folder_that_is_there_is_not_overwritten(links: Path, openmoji, tmp_path: Path):
    with pytest.raises(RetrievalError, match="found it built already, need a new folder"):
        build_folder(links, tmp_path, BuildConfig(kind="urls"), openmoji.retrieval_encoder)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"caption": ["x"]}, "found no column url, need url and caption"),
        ({"url": ["http://a.example/x"]}, "found no column caption, need url and caption"),
        ({"url": ["ftp://a.example/x"], "caption": ["x"]}, "found no link of the web among 1, need http or https"),
    ],
)
def test_links_that_cannot_be_used_are_named(table: dict, words: str, openmoji, tmp_path: Path):
    pd.DataFrame(table).to_parquet(tmp_path / "links.parquet")
    with pytest.raises(RetrievalError, match=words):
        build_folder(tmp_path / "links.parquet", tmp_path / "out", BuildConfig(kind="urls"), openmoji.retrieval_encoder)


def test_a_column_that_only_some_parts_have_is_named(openmoji, tmp_path: Path):
    (tmp_path / "links").mkdir()
    links = pd.DataFrame({"url": ["http://a.example/x"], "caption": ["x"]})
    links.to_parquet(tmp_path / "links" / "a.parquet")
    links.assign(NSFW=[0.9]).to_parquet(tmp_path / "links" / "b.parquet")
    with pytest.raises(
        RetrievalError, match=r"b\.parquet: found a column for nsfw, unlike in a\.parquet, need the same"
    ):
        build_folder(tmp_path / "links", tmp_path / "out", BuildConfig(kind="urls"), openmoji.retrieval_encoder)


def test_a_source_that_is_not_there_and_a_folder_without_captions(openmoji, tmp_path: Path):
    encoder = openmoji.retrieval_encoder
    with pytest.raises(RetrievalError, match="found nothing there, need the folder to index"):
        build_folder(tmp_path / "none", tmp_path / "out", BuildConfig(kind="folder"), encoder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RetrievalError, match=r"found no image with a caption, need name\.jpg beside name\.txt"):
        build_folder(tmp_path / "empty", tmp_path / "other", BuildConfig(kind="folder"), encoder)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (np.eye(4)[:3], "found 3 vectors and 4 rows of metadata, need as many"),
        (np.eye(4) * 2, r"found a vector of length 2\.000, need unit vectors; normalise them"),
    ],
)
def test_ready_embeddings_are_checked_before_hours_of_indexing(
    vectors: np.ndarray, words: str, openmoji, tmp_path: Path
):
    source = tmp_path / "source"
    for name in ("text_emb", "metadata"):
        (source / name).mkdir(parents=True)
    np.save(source / "text_emb" / "text_emb_0000.npy", vectors.astype(np.float16))
    table = pd.DataFrame({"caption": ["x"] * 4, "url": ["http://a.example"] * 4})
    table.to_parquet(source / "metadata" / "metadata_0000.parquet")
    with pytest.raises(RetrievalError, match=words):
        build_folder(source, tmp_path / "out", BuildConfig(kind="embeddings"), openmoji.retrieval_encoder)


@pytest.mark.parametrize(
    ("count", "width", "memory", "key"),
    [
        (25_000, 512, "4G", "Flat"),
        (100_000, 512, "4G", "IVF1024,Flat"),
        (2_000_000, 512, "4G", "IVF4096,Flat"),
        (2_000_000, 512, "1G", "Pad512,IVF4096_HNSW32,PQ256x8"),
        (400_000_000, 512, "200G", "Pad512,IVF65536_HNSW32,PQ256x8"),
        (2_000_000_000, 768, "150G", "Pad768,IVF65536_HNSW32,PQ48x8"),
    ],
)
def test_the_index_fits_its_memory(count: int, width: int, memory: str, key: str):
    assert index_key(count, width, budget(memory)) == key


def test_a_memory_that_holds_nothing_is_named():
    with pytest.raises(RetrievalError, match=r"found 1,073,741,824 bytes for 400,000,000 vectors, need 9,600,000,000"):
        index_key(400_000_000, 512, budget("1G"))


@pytest.mark.parametrize(("memory", "key"), [("100M", "IVF512,Flat"), ("2M", "Pad32,IVF512_HNSW32,PQ16x8")])
def test_large_sets_get_an_index_that_autofaiss_builds_and_we_map(memory: str, key: str, openmoji, tmp_path: Path):
    """Also the quantized kind: not every factory string of FAISS goes through autofaiss."""
    source = tmp_path / "source"
    for name in ("text_emb", "metadata"):
        (source / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    centres = random.standard_normal((300, 32))
    vectors = np.repeat(centres, 100, axis=0) + 0.3 * random.standard_normal((30_000, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    np.save(source / "text_emb" / "text_emb_0000.npy", vectors.astype(np.float16))
    table = pd.DataFrame({"caption": [f"caption {n}" for n in range(30_000)], "url": ""})
    table.to_parquet(source / "metadata" / "metadata_0000.parquet")
    config = BuildConfig(kind="embeddings", memory=memory)
    out = build_folder(source, tmp_path / "out", config, openmoji.retrieval_encoder)
    assert json.loads((out / "report.json").read_text())["indices"] == {"text": key}
    assert (out / "text.index").stat().st_size < 1.6 * budget(memory)
    found = search(LocalSource(out), vectors[[1234]], 50)["item_id"].to_numpy()
    assert (found // 100 == 12).mean() > 0.9  # its own cluster
