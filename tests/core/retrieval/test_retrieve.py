from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from customdiff_core import images, profiles, tables
from customdiff_core.config import IndexConfig, RetrieveConfig
from customdiff_core.errors import ImageError, RetrievalError
from customdiff_core.retrieval.encoder import Encoder
from customdiff_core.retrieval.index import Index
from customdiff_core.retrieval.retrieve import build_index, retrieve


def test_exactly_as_many_as_asked_and_all_different(chain):
    table = tables.read(chain.store, chain.regularization, "regularization")
    assert len(table) == chain.regularization.rows == 24
    assert table["source_sha256"].is_unique
    assert table["position"].tolist() == list(range(24))
    for row in table.itertuples():
        image = images.open_trusted(row.image)
        assert image.size == (row.width, row.height) == (64, 64)
    assert list(table.columns) == [
        "position", "cand_id", "url", "caption", "similarity", "width", "height", "source_sha256", "image", "round",
    ]  # fmt: skip


def test_they_are_the_nearest_captions_to_the_class_prompt(chain):
    table = tables.read(chain.store, chain.regularization, "regularization")
    encoder = Encoder(chain.profile.retrieval_encoder, "cpu")
    everything = Index(chain.store.path(chain.index)).metadata["caption"].tolist()
    similarity = encoder.texts(everything) @ encoder.texts(["photo of a cat"])[0]
    assert table["similarity"].tolist() == pytest.approx(np.sort(similarity)[::-1][:24], abs=2e-4)
    assert table["caption"][:12].str.contains("cat").all()


def test_every_candidate_is_accounted_for(chain):
    table = tables.read(chain.store, chain.regularization, "candidates")
    assert len(table) == 60
    assert table["rank"].tolist() == list(range(60))
    assert set(table["prompt"]) == {"photo of a cat"}
    assert table["similarity"].is_monotonic_decreasing
    kept = tables.read(chain.store, chain.regularization, "regularization")["cand_id"]
    assert (table.set_index("cand_id")["drop_reason"][kept] == "").all()
    assert {"source", "item_id", "url", "caption", "dup_group", "drop_reason"} <= set(table.columns)


def test_asked_again_nothing_is_read(chain):
    def progress(done: int, total: int, note: str = "") -> None:
        raise AssertionError("an index or a search ran again")

    index = build_index(chain.profile, chain.index_config, store=chain.store, progress=progress)
    assert index == chain.index
    again = retrieve(chain.concept, index, chain.profile, chain.retrieve_config, store=chain.store, progress=progress)
    assert again == chain.regularization


def test_an_index_is_the_same_on_every_run_and_another_for_another_seed(openmoji, store, tmp_path: Path):
    from customdiff_core.artifacts import Store

    one = build_index(openmoji, IndexConfig(scenes=20), store=store)
    assert build_index(openmoji, IndexConfig(scenes=20), store=Store(tmp_path / "other")).sha256 == one.sha256
    assert build_index(openmoji, IndexConfig(scenes=20, seed=1), store=store).sha256 != one.sha256


def test_more_than_the_index_holds(chain, store):
    with pytest.raises(RetrievalError) as error:
        retrieve(chain.concept, chain.index, chain.profile, RetrieveConfig(count=1201), store=chain.store)
    assert str(error.value) == (
        "regularization images: found an index of 1200, need 1201; "
        "ask for fewer (retrieve.count) or build a larger index"
    )


def test_too_few_are_near_enough(chain):
    config = RetrieveConfig(count=24, candidates=60, min_similarity=0.9999)
    with pytest.raises(
        RetrievalError,
        match=r"images for 'photo of a cat': found \d+ of 60 candidates \(\d+ similarity below 0\.9999.*\), need 24; ask for fewer",
    ):
        retrieve(chain.concept, chain.index, chain.profile, config, store=chain.store)


@pytest.fixture
def folder(openmoji, tmp_path: Path) -> Path:
    """Somebody's own index: pictures of any shape, of which two are the same."""
    import faiss

    words = ["photo of a cat", "a cat", "a cat face", "a dog", "a rocket"]
    vectors = Encoder(openmoji.retrieval_encoder, "cpu").texts(words)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "text.index"))
    (tmp_path / "metadata").mkdir()
    paths = [f"{number}.jpg" for number in range(5)]
    pd.DataFrame({"caption": words, "image_path": paths}).to_parquet(tmp_path / "metadata" / "metadata_0000.parquet")
    for number in range(5):
        Image.new("L", (100 + number, 60), 20 * max(1, number)).save(tmp_path / paths[number])
    (tmp_path / "1.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    return tmp_path


def test_a_folder_of_ones_own_is_searched_and_copies_are_dropped(folder: Path, cat, store):
    profile = profiles.get("openmoji", index=folder)
    made = retrieve(cat, None, profile, RetrieveConfig(count=3, candidates=5), store=store)
    table = tables.read(store, made, "regularization")
    assert table["caption"][0] == "photo of a cat"
    assert len(table) == 3
    dropped = tables.read(store, made, "candidates").set_index("caption")["drop_reason"]
    assert dropped["a cat"] == "same image as a better hit"
    assert images.open_trusted(table["image"][0]).mode == "RGB"


def test_a_broken_picture_in_a_folder_is_named(folder: Path, cat, store):
    (folder / "0.jpg").write_text("not a picture")
    with pytest.raises(ImageError, match="index item 0: found no picture"):
        retrieve(cat, None, profiles.get("openmoji", index=folder), RetrieveConfig(count=3, candidates=5), store=store)
