import re
import shutil
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest

from customdiff_core.errors import ImageError, RetrievalError
from customdiff_core.retrieval.index import Index


def write_index(folder: Path, vectors: np.ndarray, table: pd.DataFrame, parts: int = 1) -> Path:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors.astype(np.float32))
    faiss.write_index(index, str(folder / "text.index"))
    (folder / "metadata").mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(table)), parts)):
        table.iloc[rows].to_parquet(folder / "metadata" / f"metadata_{number:04d}.parquet")
    return folder


def captions(count: int) -> pd.DataFrame:
    names = [f"caption {number}" for number in range(count)]
    return pd.DataFrame({"caption": names, "image_path": [f"images/{number}.png" for number in range(count)]})


# The built one


def test_it_has_clip_retrievals_layout(chain):
    folder = chain.store.path(chain.index)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"image.index", "text.index", "img_emb/img_emb_0000.npy", "text_emb/text_emb_0000.npy"} <= names
    assert {"metadata/metadata_0000.parquet", "images/000/000000.png", "images/001/001199.png"} <= names
    assert chain.index.rows == 1200
    assert faiss.read_index(str(folder / "image.index")).ntotal == 1200
    assert np.load(folder / "text_emb" / "text_emb_0000.npy").shape[0] == 1200


def test_search_is_an_exact_search(chain):
    source = Index(chain.store.path(chain.index))
    vectors = np.load(chain.store.path(chain.index) / "text_emb" / "text_emb_0000.npy").astype(np.float32)
    query = vectors[[7]] / np.linalg.norm(vectors[7])
    found = source.search(query, 20)
    best = np.sort(vectors @ query[0])[::-1][:20]
    np.testing.assert_allclose(found["similarity"], best, atol=2e-3)  # embeddings are kept in half precision
    assert len(source) == 1200
    assert found["caption"][0] == source.metadata["caption"].iloc[7]


def test_a_caption_finds_its_like(chain, openmoji):
    from customdiff_core.retrieval.encoder import Encoder

    found = Index(chain.store.path(chain.index)).search(
        Encoder(openmoji.retrieval_encoder, "cpu").texts(["photo of a cat"]), 5
    )
    assert found["caption"].str.contains("cat").all()
    assert found["similarity"].is_monotonic_decreasing


def test_an_image_is_read_and_no_path_leaves_the_folder(chain):
    source = Index(chain.store.path(chain.index))
    assert source.read_image("images/000/000000.png").startswith(b"\x89PNG")
    with pytest.raises(ImageError, match="found a link to /etc/hosts, need a picture inside"):
        source.read_image("../../../../../../../../../../etc/hosts")
    with pytest.raises(ImageError, match="need a picture inside"):
        source.read_image("/etc/hosts")


# Any folder


def test_equal_similarities_come_in_the_order_of_ids_whatever_the_count(tmp_path: Path):
    vectors = np.zeros((300, 4))
    vectors[:, 0] = 1
    source = Index(write_index(tmp_path, vectors, captions(300), parts=3))
    query = np.array([[1, 0, 0, 0]], np.float32)
    assert source.search(query, 10)["item_id"].tolist() == list(range(10))
    everything = source.search(query, 500)
    assert everything["item_id"].tolist() == list(range(300))
    assert everything["caption"].tolist() == captions(300)["caption"].tolist()


def test_differences_below_a_ten_thousandth_are_no_order(tmp_path: Path):
    vectors = np.array([[0.90000, 0], [0.90002, 0], [0.9002, 0]])
    found = Index(write_index(tmp_path, vectors, captions(3))).search(np.array([[1, 0]], np.float32), 3)
    assert found["item_id"].tolist() == [2, 0, 1]


def test_what_an_approximate_index_did_not_find_is_no_hit(tmp_path: Path):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, 8)).astype(np.float32)
    write_index(tmp_path, vectors, captions(400))
    approximate = faiss.IndexIVFFlat(faiss.IndexFlatIP(8), 8, 8, faiss.METRIC_INNER_PRODUCT)
    approximate.train(vectors)
    approximate.add(vectors)
    approximate.nprobe = 1
    faiss.write_index(approximate, str(tmp_path / "text.index"))
    found = Index(tmp_path).search(vectors[:1], 300)
    assert 0 < len(found) < 300
    assert found["item_id"].is_unique
    assert (found["item_id"] >= 0).all()


def test_a_folder_without_text_index(tmp_path: Path):
    with pytest.raises(RetrievalError) as error:
        Index(tmp_path)
    assert str(error.value) == f"index {tmp_path}: found no text.index, need a clip-retrieval folder; build one first"


def test_a_folder_without_metadata(tmp_path: Path):
    write_index(tmp_path, np.eye(3), captions(3))
    shutil.rmtree(tmp_path / "metadata")
    with pytest.raises(RetrievalError) as error:
        Index(tmp_path)
    assert (
        str(error.value) == f"index {tmp_path}: found no metadata/*.parquet, need the captions; copy the folder again"
    )


@pytest.mark.parametrize("column", ["caption", "image_path"])
def test_a_missing_column_is_named(tmp_path: Path, column: str):
    with pytest.raises(RetrievalError) as error:
        Index(write_index(tmp_path, np.eye(3), captions(3).drop(columns=column)))
    assert str(error.value) == (f"index {tmp_path}: found no column {column} in metadata/, need caption and image_path")


def test_vectors_and_captions_are_as_many(tmp_path: Path):
    with pytest.raises(RetrievalError) as error:
        Index(write_index(tmp_path, np.eye(3), captions(2)))
    assert str(error.value) == f"index {tmp_path}: found 3 vectors and 2 captions, need as many; build it again"


def test_another_encoders_width_is_refused(tmp_path: Path):
    source = Index(write_index(tmp_path, np.eye(3), captions(3)))
    with pytest.raises(RetrievalError) as error:
        source.search(np.ones((1, 5), np.float32), 1)
    assert str(error.value) == (
        f"index {tmp_path}: found width 3, need 5 of the retrieval encoder; use the encoder that the index was built with"
    )


def test_a_file_that_is_no_index_is_named(tmp_path: Path):
    write_index(tmp_path, np.eye(3), captions(3))
    (tmp_path / "text.index").write_bytes(b"not an index")
    with pytest.raises(
        RetrievalError, match=rf"index {re.escape(str(tmp_path))}: found a text\.index that faiss cannot read"
    ):
        Index(tmp_path)
