"""A concept of one's own pictures: `customdiff new`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from customdiff_core import concepts
from customdiff_core.concept_folders import begin
from customdiff_core.errors import ConceptError, ImageError, ModifierTokenError
from customdiff_core.settings import REPOSITORY


@pytest.fixture
def photos(tmp_path: Path, noise_png: bytes) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = [folder / f"IMG {number}.PNG" for number in range(4)]
    for path in paths:
        path.write_bytes(noise_png)
    return paths


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "prompts").mkdir(parents=True)
    usual = REPOSITORY / "data" / "prompts" / "photographs.txt"
    (tmp_path / "data" / "prompts" / usual.name).write_bytes(usual.read_bytes())
    return tmp_path / "data"


def test_five_photographs_become_a_concept_that_can_be_trained(photos: list[Path], data: Path) -> None:
    made = begin("my-ox", "ox", photos, data)
    assert made == concepts.load("my-ox", data=data)
    assert (made.noun, made.class_prompt) == ("<my-ox> ox", "photo of an ox")
    assert made.with_concept(made.instance_prompt) == "photo of a <my-ox> ox"
    assert [made.read(one) for one in made.images] == [path.read_bytes() for path in photos]
    assert len(made.prompts) == len(set(made.prompts)) == 20


def test_links_into_a_photo_library_are_followed(photos: list[Path], data: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    link.symlink_to(photos[0])
    made = begin("ox", "ox", [link], data)
    assert [(one.name, made.read(one)) for one in made.images] == [("link.png", photos[0].read_bytes())]


def test_token_and_prompts_can_be_chosen(photos: list[Path], data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("# two\na {} on the moon\n\na {} asleep\n")
    made = begin("ox", "ox", photos, data, token="<bull>", prompts=file)
    assert (made.noun, made.prompts) == ("<bull> ox", ("a {} on the moon", "a {} asleep"))


def test_what_cannot_be_a_concept_is_said_and_leaves_nothing(photos: list[Path], data: Path, tmp_path: Path) -> None:
    begin("ox", "ox", photos, data)
    broken, other = tmp_path / "broken.png", tmp_path / "phone.heic"
    broken.write_bytes(b"no picture")
    other.write_bytes(b"x")
    copy = tmp_path / photos[0].name
    copy.write_bytes(photos[0].read_bytes())
    for error, words, arguments in (
        (ConceptError, "found the name 'My Ox', need small letters", ("My Ox", "ox", photos)),
        (ConceptError, r"found .*ox already, need a new name", ("ox", "ox", photos)),
        (ConceptError, r"found several named IMG 0\.PNG, need a name for each", ("ox2", "ox", [*photos, copy])),
        (ImageError, r"phone\.heic: found a \.heic file, need one of .*; convert", ("ox2", "ox", [other])),
        (ImageError, r"broken\.png: found", ("ox2", "ox", [*photos, broken])),
        (ConceptError, "found no pictures, need 4 to 6", ("ox2", "ox", [])),
    ):
        with pytest.raises(error, match=words):
            begin(*arguments, data)
    with pytest.raises(ModifierTokenError, match="found <ox> in concepts 'ox2' and 'ox'"):
        begin("ox2", "ox", photos, data, token="<ox>")
    assert [path.name for path in (data / "concepts").iterdir()] == ["ox"]


def test_the_command_line_says_what_comes_next(photos: list[Path], data: Path) -> None:
    from deployments.cli import app

    done = CliRunner().invoke(app, ["new", "ox", "ox", *map(str, photos), "--into", str(data)])
    assert done.exit_code == 0, done.output
    assert "4 pictures of <ox> ox" in done.output
    assert "customdiff train ox" in done.output
