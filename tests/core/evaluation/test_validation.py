import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from customdiff_core import images, profiles, tables
from customdiff_core.errors import EvaluationError, ImageError
from customdiff_core.evaluation.validation import validation


def test_every_image_is_of_the_category_and_has_its_caption(openmoji, cat, store):
    table = tables.read(store, validation(cat, openmoji, 20, store=store), "validation")
    assert len(table) == 20
    assert table["caption"].str.contains(r"\bcat\b").all()
    assert not table["caption"].str.contains("teal-cat").any()
    assert {images.open_trusted(data).size for data in table["image"]} == {(64, 64)}


def test_none_of_them_is_in_the_index(chain):
    made = validation(chain.concept, chain.profile, 200, store=chain.store)
    held_out = {images.digest(data) for data in tables.read(chain.store, made, "validation")["image"]}
    folder = chain.store.path(chain.index)
    indexed = {images.digest(path.read_bytes()) for path in folder.glob("images/*/*.png")}
    assert len(indexed) > 1100
    assert len(held_out) > 190
    assert not held_out & indexed


def test_fewer_are_the_first_of_more(openmoji, cat, store):
    few, more = (tables.read(store, validation(cat, openmoji, count, store=store), "validation") for count in (5, 9))
    assert few["image"].tolist() == more["image"][:5].tolist()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"caption": f"cat {n}", "image": images.encode(Image.new("RGB", (40, 30), (n, 0, 0)))} for n in range(5)]
    pd.DataFrame(rows).to_parquet(tmp_path / "held_out.parquet")
    return tmp_path / "held_out.parquet"


def test_a_file_of_ones_own_is_read(source: Path, cat, store):
    made = validation(cat, profiles.get("openmoji", validation=source), 3, store=store)
    table = tables.read(store, made, "validation")
    assert table["caption"].tolist() == ["cat 0", "cat 1", "cat 2"]
    assert images.open_trusted(table["image"][2]).getpixel((0, 0)) == (2, 0, 0)


def test_pictures_of_a_file_have_the_side_of_generated_ones_and_keep_their_middle(tmp_path: Path, cat, store):
    wide = Image.new("RGB", (400, 200), (200, 0, 0))
    wide.paste((0, 0, 200), (100, 0, 300, 200))
    same = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    rows = [{"caption": "cat", "image": images.encode(one)} for one in (wide, same)]
    pd.DataFrame(rows).to_parquet(tmp_path / "held_out.parquet")
    made = validation(cat, profiles.get("openmoji", validation=tmp_path / "held_out.parquet"), 2, store=store)
    first, second = (images.open_trusted(data) for data in tables.read(store, made, "validation")["image"])
    assert first.size == (64, 64)
    assert np.asarray(first).reshape(-1, 3).tolist() == [[0, 0, 200]] * 64**2
    assert np.array_equal(np.asarray(second), np.asarray(same))


def test_too_few_are_said(source: Path, cat, store):
    with pytest.raises(EvaluationError) as error:
        validation(cat, profiles.get("openmoji", validation=source), 6, store=store)
    assert str(error.value) == f"{source}: found 5 images, need 6; add some or lower kid_images"


@pytest.mark.parametrize("column", ["caption", "image"])
def test_a_missing_column_is_named(source: Path, cat, store, column: str):
    pd.read_parquet(source).drop(columns=column).to_parquet(source)
    with pytest.raises(EvaluationError) as error:
        validation(cat, profiles.get("openmoji", validation=source), 3, store=store)
    assert str(error.value) == f"{source}: found no column {column}, need caption and image; add it"


def test_a_broken_image_is_named(source: Path, cat, store):
    table = pd.read_parquet(source)
    table.at[1, "image"] = b"not a picture"
    table.to_parquet(source)
    with pytest.raises(ImageError, match=r"held_out\.parquet row 1: found no picture"):
        validation(cat, profiles.get("openmoji", validation=source), 3, store=store)


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("caption", ["cat", None, "cat", "cat", "cat"], "row 1: found no caption, need a caption and an image in each"),
        ("image", [None] + [b"x"] * 4, "row 0: found no image, need a caption and an image in each"),
        ("caption", [1, 2, 3, 4, 5], "found the column caption of int64, need text"),
        (
            "image",
            [{"bytes": b"x"}] * 5,
            "found the column image of struct<bytes: binary>, need the bytes of a picture's",
        ),
    ],
)
def test_what_a_row_lacks_is_named(source: Path, cat, store, column: str, values: list[object], found: str):
    table = pd.read_parquet(source)
    table.assign(**{column: pd.Series(values, dtype=None)}).to_parquet(source)
    with pytest.raises(EvaluationError, match=rf"held_out\.parquet.*{re.escape(found)}"):
        validation(cat, profiles.get("openmoji", validation=source), 3, store=store)


def test_captions_of_few_kinds_are_read(source: Path, cat, store):
    table = pd.read_parquet(source)
    table.assign(caption=pd.Series(["cat"] * 5, dtype="category")).to_parquet(source)
    made = validation(cat, profiles.get("openmoji", validation=source), 3, store=store)
    assert tables.read(store, made, "validation")["caption"].tolist() == ["cat"] * 3


def test_what_is_no_parquet_is_said(source: Path, cat, store):
    source.write_bytes(b"caption,image")
    with pytest.raises(
        EvaluationError, match=r"found no readable Parquet .*, need one with the columns caption and image"
    ):
        validation(cat, profiles.get("openmoji", validation=source), 3, store=store)


def test_a_profile_without_any_says_what_to_give(cat, store):
    profile = profiles.get("sd14", index=Path("/i"))
    with pytest.raises(
        EvaluationError, match=r"validation images: found none, need a Parquet of 3 held-out images .* give its"
    ):
        validation(cat, profile, 3, store=store)


def test_a_file_that_is_not_there_is_named(cat, store, tmp_path: Path):
    with pytest.raises(
        EvaluationError, match=rf"validation images: found no file {tmp_path}/none\.parquet, need a Parquet"
    ):
        validation(cat, profiles.get("openmoji", validation=tmp_path / "none.parquet"), 3, store=store)
