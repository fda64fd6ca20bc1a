import re
import shutil
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest

from customdiff_core.errors import ImageError, RetrievalError
from customdiff_core.retrieval.encoder import Encoder
from customdiff_core.retrieval.local import LocalSource
from customdiff_core.retrieval.metadata import Metadata
from customdiff_core.retrieval.sources import search
from customdiff_core.settings import REPOSITORY

from .conftest import write_index


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
    source = LocalSource(chain.store.path(chain.index))
    vectors = np.load(chain.store.path(chain.index) / "text_emb" / "text_emb_0000.npy").astype(np.float32)
    query = vectors[[7]] / np.linalg.norm(vectors[7])
    found = search(source, query, 20)
    best = np.sort(vectors @ query[0])[::-1][:20]
    np.testing.assert_allclose(found["index_similarity"], best, atol=2e-3)  # embeddings are kept in half precision
    assert len(source) == 1200
    assert found["caption"][0] == source.rows(np.array([7]))["caption"][0]


def test_a_caption_finds_its_like(chain, openmoji):
    found = search(
        LocalSource(chain.store.path(chain.index)),
        Encoder(openmoji.retrieval_encoder, "cpu").texts(["photo of a cat"]),
        5,
    )
    assert found["caption"].str.contains("cat").all()
    assert found["index_similarity"].is_monotonic_decreasing


def test_an_image_is_read_and_no_path_leaves_the_folder(chain):
    source = LocalSource(chain.store.path(chain.index))
    assert source.read("images/000/000000.png").startswith(b"\x89PNG")
    with pytest.raises(ImageError, match="found a link to /etc/hosts, need a picture inside"):
        source.read("../../../../../../../../../../etc/hosts")
    with pytest.raises(ImageError, match="need a picture inside"):
        source.read("/etc/hosts")


# Any folder


def test_equal_similarities_come_in_the_order_of_ids_whatever_the_count(tmp_path: Path):
    vectors = np.zeros((300, 4))
    vectors[:, 0] = 1
    source = LocalSource(write_index(tmp_path, vectors, captions(300), parts=3))
    query = np.array([[1, 0, 0, 0]], np.float32)
    assert search(source, query, 10)["item_id"].tolist() == list(range(10))
    everything = search(source, query, 500)
    assert everything["item_id"].tolist() == list(range(300))
    assert everything["caption"].tolist() == captions(300)["caption"].tolist()


def test_differences_below_a_ten_thousandth_are_no_order(tmp_path: Path):
    vectors = np.array([[0.90000, 0], [0.90002, 0], [0.9002, 0]])
    found = search(LocalSource(write_index(tmp_path, vectors, captions(3))), np.array([[1, 0]], np.float32), 3)
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
    found = search(LocalSource(tmp_path, nprobe=1), vectors[:1], 300)
    assert 0 < len(found) < 300
    assert found["item_id"].is_unique
    assert (found["item_id"] >= 0).all()


def test_more_cells_are_searched_where_the_usual_ones_do_not_hold_as_many(tmp_path: Path):
    """So that a deeper search finds more; the next one begins where every search begins."""
    vectors = np.random.default_rng(0).standard_normal((4000, 8)).astype(np.float32)
    write_index(tmp_path, vectors, captions(4000))
    cells = faiss.index_factory(8, "IVF128_HNSW8,Flat", faiss.METRIC_INNER_PRODUCT)
    cells.train(vectors)
    cells.add(vectors)
    faiss.write_index(cells, str(tmp_path / "text.index"))
    source = LocalSource(tmp_path)
    few = search(source, vectors[:1], 20)
    assert len(search(source, vectors[:1], 3000)) == 3000
    pd.testing.assert_frame_equal(search(source, vectors[:1], 20), few)


@pytest.mark.parametrize("kept", [0, 60, 900])
def test_a_part_that_was_cut_off_is_named(chain, tmp_path: Path, kept: int):
    folder = shutil.copytree(chain.store.path(chain.index), tmp_path / "copy")
    part = folder / "text_emb" / "text_emb_0000.npy"
    part.write_bytes(part.read_bytes()[:kept])
    with pytest.raises(RetrievalError, match=rf"^{re.escape(str(part))}: found no whole \.npy"):
        LocalSource(folder)


def test_an_index_of_nothing_is_named(tmp_path: Path):
    write_index(tmp_path, np.zeros((0, 4)), captions(0))
    with pytest.raises(RetrievalError, match=r"found no vector in text\.index"):
        LocalSource(tmp_path)


def test_a_folder_without_text_index(tmp_path: Path):
    with pytest.raises(RetrievalError) as error:
        LocalSource(tmp_path)
    assert (
        str(error.value)
        == f"index {tmp_path}: found no text.index or image.index, need a clip-retrieval folder; build one first"
    )


def test_a_folder_without_metadata(tmp_path: Path):
    write_index(tmp_path, np.eye(3), captions(3))
    shutil.rmtree(tmp_path / "metadata")
    with pytest.raises(RetrievalError) as error:
        LocalSource(tmp_path)
    assert (
        str(error.value) == f"index {tmp_path}: found no metadata/*.parquet, need the captions; copy the folder again"
    )


def test_a_missing_column_is_named(tmp_path: Path):
    with pytest.raises(RetrievalError) as error:
        LocalSource(write_index(tmp_path, np.eye(3), captions(3).drop(columns="caption")))
    assert str(error.value) == (
        f"index {tmp_path}: found no column caption in metadata/metadata_0000.parquet, need caption, and image_path or url"
    )


def test_images_are_nowhere(tmp_path: Path):
    with pytest.raises(
        RetrievalError, match=r"found no column url or image_path in metadata/metadata_0000\.parquet, need one"
    ):
        LocalSource(write_index(tmp_path, np.eye(3), captions(3).drop(columns="image_path")))


def test_a_column_that_a_later_part_lacks_is_named(tmp_path: Path):
    write_index(tmp_path, np.eye(4), captions(4), parts=2)
    captions(2).assign(url="x").to_parquet(tmp_path / "metadata" / "metadata_0000.parquet")
    with pytest.raises(
        RetrievalError,
        match=r"found no column url in metadata/metadata_0001\.parquet, need it as in the other",
    ):
        LocalSource(tmp_path)


def test_parts_whose_names_do_not_say_their_order_are_refused(tmp_path: Path):
    write_index(tmp_path, np.eye(4), captions(4), parts=2)
    (tmp_path / "metadata" / "metadata_0000.parquet").rename(tmp_path / "metadata" / "metadata_2.parquet")
    (tmp_path / "metadata" / "metadata_0001.parquet").rename(tmp_path / "metadata" / "metadata_10.parquet")
    with pytest.raises(RetrievalError) as error:
        LocalSource(tmp_path)
    assert str(error.value) == (
        f"index {tmp_path}: found metadata_10.parquet before metadata_2.parquet in metadata/, need names whose order as text is "
        "that of the vectors; pad their numbers with zeros"
    )


def test_parts_of_other_sizes_than_the_embeddings_are_refused(tmp_path: Path):
    write_index(tmp_path, np.eye(5), captions(5), parts=2)  # 3 and 2
    (tmp_path / "text_emb").mkdir()
    for number, count in enumerate((2, 3)):
        np.save(tmp_path / "text_emb" / f"text_emb_{number:04d}.npy", np.zeros((count, 5), np.float16))
    with pytest.raises(
        RetrievalError, match=r"found 3 rows in metadata/metadata_0000\.parquet beside 2 vectors in text_emb_0000"
    ):
        LocalSource(tmp_path)


def test_metadata_in_another_order_than_the_vectors_is_refused(chain, openmoji, tmp_path: Path):
    """Nothing in the files says so: captions are looked up again and do not find themselves."""
    encoder = Encoder(openmoji.retrieval_encoder, "cpu")
    built = chain.store.path(chain.index)
    LocalSource(built).check(encoder)
    shutil.copytree(built / "metadata", tmp_path / "metadata")
    shutil.copy(built / "text.index", tmp_path)
    path = tmp_path / "metadata" / "metadata_0000.parquet"
    table = pd.read_parquet(path)
    table.iloc[np.random.default_rng(0).permutation(len(table))].to_parquet(path)
    with pytest.raises(
        RetrievalError, match=r"found \d of 16 captions near to their own vectors, need most of them; use the enc"
    ):
        LocalSource(tmp_path).check(encoder)


def test_an_index_of_distances_is_refused(tmp_path: Path):
    write_index(tmp_path, np.eye(3), captions(3))
    distances = faiss.IndexFlatL2(3)
    distances.add(np.eye(3, dtype=np.float32))
    faiss.write_index(distances, str(tmp_path / "text.index"))
    with pytest.raises(RetrievalError, match=r"found text\.index with L2 distances, need inner products"):
        LocalSource(tmp_path)


def test_an_index_of_images_alone_is_searched_too(tmp_path: Path):
    source = LocalSource(write_index(tmp_path, np.eye(4), captions(4), kind="image"))
    assert source.modality == "image"
    assert search(source, np.eye(4, dtype=np.float32)[[2]], 1)["item_id"].tolist() == [2]


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A folder of two parts joined on disk, as clip-retrieval's index_combiner writes it."""
    from faiss.contrib.ondisk import merge_ondisk

    vectors = np.random.default_rng(0).standard_normal((800, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    write_index(tmp_path, vectors, captions(800))
    (tmp_path / "text.index").unlink()
    (tmp_path / "text.index").mkdir()
    empty = faiss.index_factory(16, "IVF8,SQ8", faiss.METRIC_INNER_PRODUCT)
    empty.train(vectors)
    parts = []
    for number in range(2):
        part = faiss.clone_index(empty)
        part.add_with_ids(vectors[number * 400 : number * 400 + 400], np.arange(number * 400, number * 400 + 400))
        parts.append(str(tmp_path / f"part{number}"))
        faiss.write_index(part, parts[-1])
    whole = faiss.clone_index(empty)
    whole.nprobe = 1
    merge_ondisk(whole, parts, str(tmp_path / "text.index" / "merged_index.ivfdata"))
    faiss.write_index(whole, str(tmp_path / "text.index" / "populated.index"))
    np.save(tmp_path / "vectors.npy", vectors)
    return tmp_path


def test_a_merged_folder_is_searched_on_disk_with_enough_cells(merged: Path):
    """In a process of its own: with other flags it opens, and then the search takes the process down."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from customdiff_core.retrieval.local import LocalSource\n"
        "from customdiff_core.retrieval.sources import search\n"
        "folder = Path(sys.argv[1]); vectors = np.load(folder / 'vectors.npy'); source = LocalSource(folder)\n"
        "print(*search(source, vectors[[7]], 50)['item_id'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(merged)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    vectors = np.load(merged / "vectors.npy")
    exact = set(np.argsort(-(vectors @ vectors[7]))[:50].tolist())
    found = [int(one) for one in done.stdout.split()[-50:]]
    assert found[0] == 7
    assert len(exact & set(found)) >= 45  # eight bits a dimension; with the one cell that is stored, a fraction


def test_half_a_merged_folder_is_named(merged: Path):
    (merged / "text.index" / "merged_index.ivfdata").unlink()
    with pytest.raises(
        RetrievalError, match=r"found text\.index/populated\.index without merged_index\.ivfdata, need both"
    ):
        LocalSource(merged)


def test_metadata_is_read_by_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pyarrow.parquet as pq

    write_index(tmp_path, np.eye(40), captions(40))
    path = tmp_path / "metadata" / "metadata_0000.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=4)
    source = LocalSource(tmp_path)
    read: list[int] = []
    iterate = pq.ParquetFile.iter_batches

    def spy(self, *args, row_groups, **kwargs):
        read.extend(row_groups)
        return iterate(self, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert source.rows(np.array([17, 3, 16, 39, 3]))["caption"].tolist() == [f"caption {n}" for n in (17, 3, 16, 39, 3)]
    assert read == [0, 4, 9]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            {"TEXT": "caption", "URL": "url", "NSFW": "nsfw", "pwatermark": "watermark"},
            ["A", "http://a", "UNSURE", 0.25],
        ),
        (
            {"text": "caption", "url": "url", "nsfw_score": "nsfw", "watermark_score": "watermark"},
            ["A", "http://a", "UNSURE", 0.25],
        ),
    ],
)
def test_columns_are_known_by_the_names_of_the_data_sets(tmp_path: Path, names: dict[str, str], expected: list):
    table = pd.DataFrame({name: [value] * 3 for name, value in zip(names, expected, strict=True)})
    row = LocalSource(write_index(tmp_path, np.eye(3), table)).rows(np.array([1])).iloc[0]
    assert [row[column] for column in names.values()] == expected
    assert row["image_path"] == ""


def test_a_large_index_is_mapped_and_not_read(tmp_path: Path):
    """Private memory grows by far less than the file; a reader that copies would need all of it."""
    program = (
        "import sys, numpy as np; from pathlib import Path; import faiss, pandas, pyarrow.parquet\n"
        "from customdiff_core.retrieval.local import LocalSource; from customdiff_core.retrieval.sources import search\n"
        "def private(): return int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1]) // 1024\n"
        "folder = Path(sys.argv[1]); before = private()\n"
        "search(LocalSource(folder), np.ones((1, 256), np.float32) / 16, 200); print(private() - before)"
    )
    vectors = np.random.default_rng(0).standard_normal((60_000, 256)).astype(np.float32)
    write_index(tmp_path, vectors, captions(60_000))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 30  # MB, of a file of 60
    assert (tmp_path / "text.index").stat().st_size > 60_000_000


def test_vectors_and_captions_are_as_many(tmp_path: Path):
    with pytest.raises(RetrievalError) as error:
        LocalSource(write_index(tmp_path, np.eye(3), captions(2)))
    assert str(error.value) == f"index {tmp_path}: found 3 vectors and 2 captions, need as many; build it again"


def test_another_encoders_width_is_refused(tmp_path: Path):
    source = LocalSource(write_index(tmp_path, np.eye(3), captions(3)))
    with pytest.raises(RetrievalError) as error:
        search(source, np.ones((1, 5), np.float32), 1)
    assert str(error.value) == (
        f"index {tmp_path}: found width 3, need 5 of the retrieval encoder; use the encoder that the index was built with"
    )


def test_a_file_that_is_no_index_is_named(tmp_path: Path):
    write_index(tmp_path, np.eye(3), captions(3))
    (tmp_path / "text.index").write_bytes(b"not an index")
    with pytest.raises(
        RetrievalError, match=rf"index {re.escape(str(tmp_path))}: found a text\.index that faiss cannot read"
    ):
        LocalSource(tmp_path)


def test_a_score_that_only_a_later_part_has_is_no_score_that_is_ignored(tmp_path: Path):
    write_index(tmp_path, np.eye(4), captions(4), parts=2)
    captions(2).assign(NSFW=0.9).to_parquet(tmp_path / "metadata" / "metadata_0001.parquet")
    with pytest.raises(
        RetrievalError, match=r"found a column NSFW in metadata/metadata_0001\.parquet and none in the first"
    ):
        LocalSource(tmp_path)


def test_a_part_that_knows_no_score_of_its_images_is_read_beside_one_that_does(tmp_path: Path):
    write_index(tmp_path, np.eye(4), captions(4), parts=2)
    for number, scores in enumerate(([None, None], [0.1, None])):
        part = tmp_path / "metadata" / f"metadata_{number:04d}.parquet"
        pd.read_parquet(part).assign(NSFW=np.array(scores, dtype=object)).to_parquet(part)
    found = Metadata(tmp_path / "metadata").rows(np.array([2, 0, 3]))
    assert found["nsfw"].tolist() == [0.1, None, None]
