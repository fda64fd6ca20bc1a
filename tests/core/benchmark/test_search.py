"""A search: what is tried, which trial is chosen, and the test of it on other concepts."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from customdiff_core import stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark import search as searches
from customdiff_core.benchmark.cells import Cell
from customdiff_core.benchmark.conclude import choose, conclude, markdown, summary
from customdiff_core.benchmark.measure import training
from customdiff_core.benchmark.outcomes import Outcome
from customdiff_core.benchmark.search import Search
from customdiff_core.errors import ConfigError, EvaluationError
from customdiff_core.profiles import Profile
from customdiff_core.recipes import Recipe

# Image and text alignment, by the V* rate: large ones find the concept and lose the words.
LEVELS = {0.001: (0.3, 1.9), 0.004: (0.5, 1.6), 0.01: (0.6, 1.2)}
SEARCH = Search(
    name="tiny",
    concept="cat",
    tested=("dog",),
    trials=({"modifier_learning_rate": list(LEVELS)},),
    lost=0.5,
    trainings=2,
)
BASE_TEXT = 2.0


def made(store: Store, cell: Cell) -> Artifact:
    """A cell whose figures are known; the second training finds a little more."""
    rate = cell.change.get("modifier_learning_rate")
    image, text = LEVELS[rate] if rate else (0.0, BASE_TEXT)
    figures = {"image_alignment_held_out": image + 0.02 * cell.seed, "text_alignment": text, "kid": 1.0}

    def produce(folder: Path) -> int:
        return tables.write(folder / "measures.parquet", [{"metric": k, "value": v} for k, v in figures.items()])

    return store.make(Recipe(kind="cell", inputs={}, config=cell.model_dump(), code="0", versions={}), produce)


def outcomes(store: Store, cells: tuple[Cell, ...], failing: Any = lambda cell: False) -> tuple[Outcome, ...]:
    return tuple(
        Outcome(cell=one, error="TrainingError: a | b") if failing(one) else Outcome(cell=one, made=made(store, one))
        for one in cells
    )


def test_a_list_stands_for_each_of_its_values_and_equal_trials_are_tried_once() -> None:
    found = Search(
        name="x", concept="cat", trials=({"steps": [5, 6], "prior_weight": [1, 2]}, {"steps": 5, "prior_weight": 1})
    )
    assert [(one["steps"], one["prior_weight"]) for one in found.trials] == [(5, 1), (5, 2), (6, 1), (6, 2)]
    cells = searches.trials(found)
    assert [cell.row for cell in cells] == ["base", *["custom-diffusion"] * 8]
    assert [cell.seed for cell in cells[1:3]] == [0, 1]


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        ({"stpes": 5}, "stpes, Extra inputs"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"seed": 3}, "seed cannot be tried"),
    ],
)
def test_settings_that_no_training_takes_are_refused(trial: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Search(name="x", concept="cat", trials=(trial,))


@pytest.mark.parametrize("name", searches.names())
def test_every_search_is_read_and_its_cells_are_planned(name: str) -> None:
    found = searches.load(name)
    assert len(searches.trials(found)) == 1 + found.trainings * len(found.trials)
    assert {cell.concepts[0] for cell in searches.tests(found, {})} == set(found.tested)


def test_a_row_that_learns_no_single_concept_is_refused(tmp_path: Path) -> None:
    (tmp_path / "searches").mkdir()
    (tmp_path / "searches" / "odd.yaml").write_text("concept: cat\nrow: merged\ntrials: [{}]\n")
    with pytest.raises(ConfigError, match="search odd: found the row merged, need one that learns one concept"):
        searches.load("odd", tmp_path)
    with pytest.raises(ConfigError, match=r"search: found 'od', need one of odd; did you mean 'odd'\?"):
        searches.load("od", tmp_path)


def test_a_trial_trains_with_what_it_changes_and_is_a_cell_of_its_own(openmoji: Profile, store: Store) -> None:
    cells = [Cell(row="custom-diffusion", concepts=("cat",), seed=1, change=change) for change in ({}, {"steps": 7})]
    usual, changed = (training(cell, SEARCH.protocol, openmoji, "cat") for cell in cells)
    assert (usual.steps, changed.steps) == (openmoji.finetune.steps, 7)
    assert changed.model_copy(update={"steps": usual.steps}) == usual
    index = made(store, cells[0])
    keys = {stages.cell(cell, SEARCH.protocol, index, openmoji, store).key for cell in cells}
    assert len(keys) == 2


def test_the_nearest_to_the_concept_that_keeps_the_words_is_chosen(store: Store) -> None:
    tried = outcomes(store, searches.trials(SEARCH))
    assert choose(tried, SEARCH, store) == {"modifier_learning_rate": 0.004}
    free, strict = (SEARCH.model_copy(update={"lost": lost}) for lost in (1.0, 0.01))
    assert choose(tried, free, store) == {"modifier_learning_rate": 0.01}
    assert choose(tried, strict, store) == {"modifier_learning_rate": 0.001}  # none is cheap enough: the cheapest


def test_a_search_is_written_down_with_its_test_and_what_failed(store: Store, openmoji: Profile) -> None:
    tried = outcomes(store, searches.trials(SEARCH), lambda cell: cell.change.get("modifier_learning_rate") == 0.01)
    tested = outcomes(store, searches.tests(SEARCH, choose(tried, SEARCH, store)))
    run = partial(conclude, tried, tested, SEARCH, openmoji, store=store)
    written = run()
    assert run() == written
    found = tables.read(store, written, "trials")
    assert list(found["trainings"]) == [1, 2, 2, 0, 1, 2]
    assert found.loc[found["chosen"], ["concept", "image", "lost"]].round(6).values.tolist() == [
        ["cat", 0.51, 0.4],
        ["dog", 0.51, 0.4],
    ]
    text = markdown(written, store)
    assert "| **modifier_learning_rate 0.004** | **0.510** | **0.500 to 0.520** | **1.600** | **0.400** |" in text
    assert "failed: TrainingError: a / b" in text
    assert "Tested on dog, which had no part in the choice" in text


def test_half_of_a_trial_is_not_chosen_where_others_are_whole(store: Store, openmoji: Profile) -> None:
    def half(cell: Cell) -> bool:
        return cell.change.get("modifier_learning_rate") == 0.004 and cell.seed == 0

    tried = outcomes(store, searches.trials(SEARCH), half)
    assert choose(tried, SEARCH, store) == {"modifier_learning_rate": 0.001}
    text = markdown(conclude(tried, (), SEARCH, openmoji, store=store), store)
    assert "| 2 | modifier_learning_rate 0.004 | 0.520 | a training failed: TrainingError: a / b | 1.600 |" in text


def test_the_table_says_what_was_asked_and_when_nothing_met_it(store: Store, openmoji: Profile) -> None:
    strict = SEARCH.model_copy(update={"lost": 0.01, "tested": ()})
    text = markdown(conclude(outcomes(store, searches.trials(strict)), (), strict, openmoji, store=store), store)
    assert "Settings of `custom-diffusion`, chosen on cat" in text
    assert "at most 0.01 of text alignment" in text
    assert "None costs so little; the cheapest is chosen." in text
    assert "| settings | image alignment, held-out pictures |" in text


def test_the_command_line_writes_the_newest_search(
    store: Store, openmoji: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from deployments.cli import app

    name = "openmoji-custom-diffusion"
    here = SEARCH.model_copy(update={"name": name})
    conclude(outcomes(store, searches.trials(here)), (), here, openmoji, store=store)
    tried = here.model_copy(
        update={"concept": "dog", "tested": (), "stated": "concept"}
    )  # later, by a run's parameters
    conclude(outcomes(store, searches.trials(tried)), (), tried, openmoji, store=store)
    monkeypatch.setenv("CUSTOMDIFF_STORE", str(store.root))
    done = CliRunner().invoke(app, ["table", name])
    assert done.exit_code == 0, done.output
    assert "modifier_learning_rate 0.004" in done.output
    assert "chosen on cat" in done.output
    missing = CliRunner().invoke(app, ["table", "openmoji-textual-inversion"])
    assert missing.exit_code == 1
    assert "search: found none of openmoji-textual-inversion with profile openmoji" in " ".join(missing.output.split())


def test_a_search_of_before_there_was_a_mark_is_the_named_one(
    store: Store, openmoji: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    from customdiff_core.cli import benchmarking

    conclude(outcomes(store, searches.trials(SEARCH)), (), SEARCH, openmoji, store=store)
    (made,) = store.manifests("search")
    labels = {name: value for name, value in made.recipe.labels.items() if name != "stated"}
    old = made.model_copy(update={"recipe": made.recipe.model_copy(update={"labels": labels})})
    monkeypatch.setattr(Store, "manifests", lambda self, kind: iter([old]))
    assert "chosen on cat" in benchmarking._trials(SEARCH.name, openmoji.name, store)


def test_without_a_base_model_there_is_nothing_to_choose_by(store: Store) -> None:
    tried = outcomes(store, searches.trials(SEARCH), lambda cell: cell.row == "base")
    with pytest.raises(EvaluationError, match="search tiny: found no trial to compare with the base model"):
        choose(tried, SEARCH, store)


def test_a_tested_concept_without_held_out_pictures_changes_no_others_metric(store: Store) -> None:
    tried = outcomes(store, searches.trials(SEARCH))

    def bare(cell: Cell) -> Artifact:
        def produce(folder: Path) -> int:
            measures = {"image_alignment_training": 0.9, "text_alignment": 1.5, "kid": 1.0}
            return tables.write(folder / "measures.parquet", [{"metric": k, "value": v} for k, v in measures.items()])

        return store.make(Recipe(kind="cell", inputs={}, config=cell.model_dump(), code="bare", versions={}), produce)

    tested = tuple(Outcome(cell=one, made=bare(one)) for one in searches.tests(SEARCH, choose(tried, SEARCH, store)))
    found = summary((*tried, *tested), store)
    assert dict(zip(found["concept"], found["metric"], strict=True)) == {
        "cat": "image_alignment_held_out",
        "dog": "image_alignment_training",
    }
