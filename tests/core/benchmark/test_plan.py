"""What a night consists of: protocols as data, rows of the paper's table, cells and their seeds."""

from datetime import date
from pathlib import Path

import pytest

from customdiff_core import concepts
from customdiff_core.benchmark import protocol, rows
from customdiff_core.benchmark.cells import plan, training_seeds
from customdiff_core.errors import ConfigError
from customdiff_core.finetuning import methods
from customdiff_core.profiles import get

NIGHT = date(2026, 3, 1)


def test_the_ten_rows_of_the_papers_table_have_its_figures() -> None:
    papers = {name: row.published["paper"] for name, row in rows.ROWS.items() if row.published}
    assert len(papers) == 10
    assert papers["custom-diffusion"] == {"text_alignment": 0.795, "image_alignment_training": 0.775, "kid": 20.96}
    assert papers["dreambooth"]["kid"] == 32.53
    assert papers["textual-inversion-together"] == {"text_alignment": 0.544, "image_alignment_training": 0.630}
    assert {row.method for row in rows.ROWS.values()} <= set(methods.METHODS)
    ways = {name: row.way for name, row in rows.ROWS.items() if row.together}
    assert ways["textual-inversion-together"] == "apart"
    assert ways["dreambooth-together"] == ways["fine-tune-all-together"] == ways["joint"] == "joint"
    assert (ways["sequential"], ways["merged"]) == ("sequential", "merge")


def test_an_unknown_row_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"row: found 'dreamboth', need one of base, .*did you mean 'dreambooth'\?"):
        rows.get("dreamboth")


@pytest.mark.parametrize("name", protocol.names())
def test_every_protocol_is_read_and_its_rows_exist(name: str) -> None:
    found = protocol.load(name)
    assert found.name == name
    assert len(plan(found, NIGHT)) >= len(rows.ROWS)


def test_the_papers_protocol_is_the_papers() -> None:
    found = protocol.load("paper")
    config = found.evaluation(get("sd14"))
    assert (found.prompts, found.prompts_together, len(config.seeds)) == (20, 8, 50)
    assert config.sample.precision == "bf16"
    assert (config.sample.sampler, config.sample.steps, config.sample.guidance_scale, config.sample.eta) == (
        "ddim",
        200,
        6,
        1,
    )
    assert (len(found.concepts), len(found.together)) == (10, 5)
    named = {*found.concepts, *(concept for group in found.together for concept in group.concepts)}
    assert named.isdisjoint(concepts.names())  # its photographs are not this project's drawings
    for group in found.together:
        assert len(concepts.prompts_together(2, file=group.prompts)) >= found.prompts_together


def test_the_nightly_protocol_has_the_concepts_and_prompts_that_it_names() -> None:
    found = protocol.load("openmoji-nightly")
    assert len(found.concepts) >= 3
    assert len(found.together) >= 2
    assert found.verdicts
    assert not protocol.load("openmoji-quick").verdicts
    for name in {*found.concepts, *(one for group in found.together for one in group.concepts)}:
        assert len(concepts.load(name).prompts) >= found.prompts
    assert len(concepts.prompts_together(2)) >= found.prompts_together


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "concepts: [cat]\nseeds: 2\nkid_images: 6\nkid_subset_size: 7",
            "found kid_subset_size 7, need at most kid_images 6",
        ),
        ("concepts: [cat]\nseeds: 2\nkid_images: 6\nkid_subset_size: 6\nrows: [dream]", "row: found 'dream'"),
        (
            "concepts: [cat]\nseeds: 2\nkid_images: 6\nkid_subset_size: 6\ncurve: [1.5]",
            r"found the curve \(1.5,\), need shares",
        ),
        (
            "concepts: [cat]\nseed: 2",
            r"found seeds \(Field required\), .*seed \(Extra inputs .* wrong, need the fields name,",
        ),
        ("[cat]", "found text that is not YAML fields"),
    ],
)
def test_a_wrong_protocol_is_said(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=said):
        protocol.load("mine", tmp_path)
    with pytest.raises(ConfigError, match=r"protocol: found 'mien', need one of mine; did you mean 'mine'\?"):
        protocol.load("mien", tmp_path)


def test_a_night_has_its_own_training_seeds_and_the_same_when_it_is_started_again() -> None:
    assert training_seeds(NIGHT, 2) == (2026030100, 2026030101)
    assert set(training_seeds(NIGHT, 3)).isdisjoint(training_seeds(date(2026, 3, 2), 3))
    found = protocol.load("openmoji-nightly")
    assert plan(found, NIGHT) == plan(found, NIGHT)


def test_a_night_has_every_row_of_every_concept_and_pair_and_a_curve_that_grows() -> None:
    found = protocol.load("openmoji-nightly").model_copy(update={"trainings": 2, "curve": (0.5, 0.25)})
    cells = plan(found, NIGHT)
    alone, together = ([row for row in rows.ROWS.values() if row.together == kind] for kind in (False, True))
    whole = [cell for cell in cells if cell.share == 1]
    assert len(whole) == 2 * (len(alone) * len(found.concepts) + len(together) * len(found.together))
    assert len({cell.name for cell in cells}) == len(cells)
    curve = [cell.share for cell in cells if cell.row == "dreambooth" and cell.concepts == (found.concepts[0],)]
    assert curve == [0.25, 0.5, 1, 0.25, 0.5, 1]
    assert {cell.concepts for cell in cells if cell.share < 1} == {(found.concepts[0],)}
