import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from customdiff_core import concepts, published
from customdiff_core.errors import ConceptError
from customdiff_core.settings import REPOSITORY


@pytest.fixture
def folder(tmp_path: Path, noise_png: bytes) -> Path:
    """A data set as it is published: pictures, prompt files, and paths that begin with `./`."""
    for name in ("pet_cat1", "furniture_chair2"):
        (tmp_path / "benchmark_dataset" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "benchmark_dataset" / name / f"{number}.png").write_bytes(noise_png)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "cat.txt").write_text("{} in the snow\na photo of {} on a beach\n\n")
    (tmp_path / "prompts" / "chair.txt").write_text("{} at a window\n")
    (tmp_path / "prompts" / "pet_furniture.txt").write_text("{0} sleeping on {1}\nphoto of {1} beside {0}\n")
    return tmp_path


def entry(name: str, category: str, **more: str) -> dict[str, str]:
    return {
        "instance_prompt": f"photo of a <new1> {category}",
        "class_prompt": category,
        "instance_data_dir": f"./benchmark_dataset/{name}",
        "class_data_dir": "./regularization/nowhere",
        **more,
    }


def write(folder: Path, content: object) -> Path:
    path = folder / "dataset.json"
    path.write_text(json.dumps(content))
    return path


CAT = entry("pet_cat1", "cat", prompt_filename="prompts/cat.txt")
CHAIR = entry("furniture_chair2", "chair", prompt_filename="prompts/chair.txt")
TOGETHER = {"prompt_filename_compose": "prompts/pet_furniture.txt"}


def test_a_published_list_becomes_concepts_of_this_project(folder: Path) -> None:
    cat, chair = published.read(write(folder, [CAT, CHAIR]))
    assert isinstance(cat, published.Published)
    assert isinstance(chair, published.Published)
    assert (cat.name, cat.category, cat.instance_prompt) == ("pet_cat1", "cat", "photo of a {}")
    assert cat.prompts == ("{} in the snow", "a photo of {} on a beach")

    target = folder / "concepts"
    made = concepts.load_folder(published.lay_out(cat, target, "<cat1>", "ktn"))
    assert made.noun == "<cat1> cat"
    assert made.with_concept(made.instance_prompt) == "photo of a <cat1> cat"
    assert len(made.images) == 3
    assert made.prompts == cat.prompts
    assert published.lay_out(cat, target, "<cat1>", "ktn") == made.folder
    (made.folder / "prompts.txt").write_text("{} of mine\n")
    with pytest.raises(ConceptError, match="with other content, need it as published or none; rename or remove it"):
        published.lay_out(cat, target, "<cat1>", "ktn")
    assert concepts.load_folder(made.folder).prompts == ("{} of mine",)


def test_a_concepts_list_needs_no_prompts(folder: Path) -> None:
    (cat,) = published.read(write(folder, [entry("pet_cat1", "cat")]))
    assert isinstance(cat, published.Published)
    made = concepts.load_folder(published.lay_out(cat, folder / "concepts", "<cat1>", "ktn"))
    assert made.prompts == ("photo of a {}",)


def test_concepts_together_come_with_their_prompts(folder: Path) -> None:
    (pair,) = published.read(write(folder, [[CAT, CHAIR, TOGETHER]]))
    assert isinstance(pair, published.PublishedPair)
    assert [one.category for one in pair.concepts] == ["cat", "chair"]
    assert pair.prompts == ("{0} sleeping on {1}", "photo of {1} beside {0}")


def test_the_word_for_a_category_may_be_several(folder: Path) -> None:
    lamp = CAT | {"instance_prompt": "photo of a <new1> action figure on a shelf", "class_prompt": "action figure"}
    (one,) = published.read(write(folder, [lamp]))
    assert isinstance(one, published.Published)
    assert one.instance_prompt == "photo of a {} on a shelf"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "need instance_prompt, class_prompt and instance_data_dir"),
        ([{"instance_prompt": "photo of a <new1> cat"}], r"found entry 0\S* wrong"),
        ([CAT | {"instance_data_dir": "../elsewhere"}], r"found the path '\.\./elsewhere', need one inside"),
        ([CAT | {"instance_data_dir": "/etc"}], "found the path '/etc', need one inside"),
        ([CAT | {"instance_data_dir": "benchmark_dataset/none"}], "need the concept's pictures there"),
        ([CAT | {"instance_prompt": "photo of a cat"}], "need a modifier token before the category 'cat'"),
        ([CAT | {"prompt_filename": "prompts/none.txt"}], r"found no file .*none\.txt"),
        ([CAT | {"prompt_filename": "prompts/pet_furniture.txt"}], r"found '\{0\} sleeping on \{1\}', need \{\}"),
        ([[CAT, TOGETHER]], "found 1 concepts and 1 prompt_filename_compose"),
        ([[CAT, CHAIR]], "found 2 concepts and 0 prompt_filename_compose"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_by_what_is_wrong(folder: Path, content: object, message: str) -> None:
    with pytest.raises(ConceptError, match=message):
        published.read(write(folder, content))


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConceptError, match="found no file, need a JSON list"):
        published.read(tmp_path / "none.json")


def test_a_picture_that_cannot_be_read_leaves_nothing_behind(folder: Path) -> None:
    (cat,) = published.read(write(folder, [CAT]))
    assert isinstance(cat, published.Published)
    (cat.pictures / "0.png").unlink()
    (cat.pictures / "0.png").symlink_to("/etc/passwd")
    with pytest.raises(Exception, match="need"):
        published.lay_out(cat, folder / "concepts", "<cat1>", "ktn")
    assert not (folder / "concepts" / "pet_cat1").exists()


def test_two_concepts_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    """Their pictures would lie in one folder."""
    (folder / "other" / "pet_cat1").mkdir(parents=True)
    shutil.copytree(folder / CAT["instance_data_dir"], folder / "other" / "pet_cat1", dirs_exist_ok=True)
    other = CAT | {"instance_data_dir": "other/pet_cat1"}
    with pytest.raises(ConceptError, match=r"found the name pet_cat1 for .*/pet_cat1 and for .*other/pet_cat1"):
        published.lay_out_protocol([write(folder, [CAT, other])], tmp_path / "data", "mine", ["ktn"])
    assert not (tmp_path / "data").exists()


def test_a_category_that_one_of_two_entries_calls_otherwise_is_said_and_taken_from_the_last(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in the published list of pairs, of a chair that it calls a sofa once."""
    other = CAT | {"class_prompt": "lion", "instance_prompt": "photo of a <new1> lion"}
    published.lay_out_protocol([write(folder, [other, CAT])], tmp_path / "data", "mine", ["ktn"])
    assert "pet_cat1: found it called lion and cat; taking the last" in caplog.text
    assert concepts.load("pet_cat1", data=tmp_path / "data").category == "cat"


def test_a_whole_benchmark_is_laid_out_with_its_protocol(folder: Path, tmp_path: Path) -> None:
    from customdiff_core.benchmark import protocol
    from customdiff_core.cli.app import app

    singles, pairs = write(folder, [CAT, CHAIR]), folder / "pairs.json"
    pairs.write_text(json.dumps([[CAT, CHAIR, TOGETHER]]))
    data = tmp_path / "data"
    command = ["lay-out", str(singles), str(pairs), "--name", "mine", "--into", str(data)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = protocol.load("mine", data)
    assert found.concepts == ("pet_cat1", "furniture_chair2")
    assert found.together[0].concepts == ("pet_cat1", "furniture_chair2")
    assert (found.prompts, found.prompts_together, found.seeds) == (1, 2, 50)
    assert found.beside == "CustomConcept101"
    assert not [one for one in (data / "concepts").iterdir() if one.name.startswith(".")]
    assert concepts.load("pet_cat1", data=data).noun == "<pet-cat1> cat"
    words = [concepts.load(name, data=data).initializer_token for name in found.together[0].concepts]
    assert words == ["ktn", "pll"]  # DreamBooth's own words for the two
    prompts = concepts.prompts_together(2, data=data, file=found.together[0].prompts)
    assert prompts == ("{0} sleeping on {1}", "photo of {1} beside {0}")
    (data / "protocols" / "mine.yaml").unlink()  # as if the first run had been broken off before it
    whole = CliRunner().invoke(app, command)
    assert whole.exit_code == 0, whole.output
    assert protocol.load("mine", data) == found
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1
    assert "need a new one" in " ".join(again.output.split())


def test_the_readmes_table_is_renewed_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from customdiff_core.cli.app import app

    monkeypatch.setenv("CUSTOMDIFF_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("customdiff_core.benchmark.history.newest", lambda name, profile, store: f"benchmark {name}")
    monkeypatch.setattr("customdiff_core.benchmark.report.night_of", lambda table, store: "2026-03-01")
    monkeypatch.setattr("customdiff_core.benchmark.report.markdown", lambda table, store: f"| {table} |")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nafter\n")
    done = CliRunner().invoke(app, ["table", "mine", "--page", str(readme)])
    assert done.exit_code == 0, done.output
    assert readme.read_text() == (
        "before\n<!-- benchmark -->\nNight of 2026-03-01, protocol `mine`:\n\n| benchmark mine |\n<!-- /benchmark -->\nafter\n"
    )
    readme.write_text("no marks")
    assert CliRunner().invoke(app, ["table", "mine", "--page", str(readme)]).exit_code == 1
    assert readme.read_text() == "no marks"


@pytest.mark.parametrize("kind", ["benchmark", "search"])
def test_the_tables_of_results_are_made_by_the_command(kind: str) -> None:
    _, _, rest = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8").partition(f"<!-- {kind} -->")
    table, end, _ = rest.partition(f"<!-- /{kind} -->")
    assert end
    assert "| Text alignment |" in table or "| text alignment |" in table
