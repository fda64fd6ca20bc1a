"""Figures, differences, claims and drift, from scores that are known."""

from datetime import date, timedelta
from math import isnan
from types import SimpleNamespace

import numpy as np
import pytest

from customdiff_core.artifacts import Store
from customdiff_core.benchmark.claims import CLAIMS, Wanted, judged, overall
from customdiff_core.benchmark.drift import FALSE_ALARMS, limits, outside
from customdiff_core.benchmark.history import earlier, failed, newest
from customdiff_core.benchmark.report import markdown
from customdiff_core.benchmark.summary import Evidence, Figure
from customdiff_core.errors import EvaluationError, StoreError
from customdiff_core.evaluation.intervals import pooled_interval
from customdiff_core.profiles import Profile

from .conftest import NIGHT, PROTOCOL, ROWS, Night, read, tabulated

BETTER = {("custom-diffusion", "text_alignment"): 0.8, ("dreambooth", "kid"): 2.0, ("joint", "text_alignment"): 0.9}


def verdict(store: Store, benchmark, claim: str) -> str:
    found = read(store, benchmark, "claims").set_index("claim")["verdict"]
    return found[claim] if isinstance(found[claim], str) else found[claim].iloc[0]


def test_a_row_a_cell_a_night_and_the_papers_figures_beside(store: Store, night: Night) -> None:
    one = night()
    cells = read(store, one, "benchmark")
    assert set(cells["row"]) == set(ROWS)
    assert len(cells) == one.rows
    assert cells.loc[cells["row"] == "dreambooth", "paper_kid"].eq(32.53).all()
    second = read(store, night(NIGHT + timedelta(days=1)), "benchmark")
    assert second["night"].value_counts().to_dict() == {"2026-03-01": len(cells), "2026-03-02": len(cells)}


def test_a_protocol_says_whose_figures_stand_beside(store: Store, night: Night) -> None:
    one = night(protocol=PROTOCOL.model_copy(update={"beside": "CustomConcept101"}))
    found = read(store, one, "table").set_index(["row", "metric"])["paper"]
    assert found["custom-diffusion", "text_alignment"] == 0.7602
    assert np.isnan(found["custom-diffusion", "kid"])  # none was published there
    words = read(store, one, "claims").set_index("claim").loc["words"]
    assert words["paper"] == pytest.approx(0.7602 - 0.6126)
    assert "| CustomConcept101 |" in markdown(one, store)


def test_a_night_run_again_is_found_and_adds_no_row(store: Store, night: Night, openmoji: Profile) -> None:
    night()
    second = night(NIGHT + timedelta(days=1))
    assert night(NIGHT + timedelta(days=1)) == second
    assert earlier(PROTOCOL, NIGHT + timedelta(days=1), openmoji, store) == (night(),)
    assert earlier(PROTOCOL, NIGHT, openmoji, store) == ()
    assert earlier(PROTOCOL.model_copy(update={"name": "other"}), NIGHT + timedelta(days=9), openmoji, store) == ()
    night(NIGHT + timedelta(days=2), protocol=PROTOCOL.model_copy(update={"rows": ("base",), "stated": "rows"}))
    night(NIGHT - timedelta(days=1))  # made last, as a broken night that is run again is
    assert newest(PROTOCOL.name, openmoji.name, store) == second
    with pytest.raises(
        StoreError, match=r"found no night of protocol other with profile openmoji .* run its deployment"
    ):
        newest("other", openmoji.name, store)


def test_a_night_of_something_else_takes_no_cell_from_the_history(
    store: Store, night: Night, openmoji: Profile
) -> None:
    whole = night()
    night(protocol=PROTOCOL.model_copy(update={"rows": ("base",), "stated": "rows"}))  # at noon, to try something
    assert earlier(PROTOCOL, NIGHT + timedelta(days=1), openmoji, store) == (whole,)


def test_rows_are_paired_by_night_where_one_of_them_missed_one(store: Store, night: Night) -> None:
    for number, (shift, failing) in enumerate([(0, ()), (9, ()), (0, ("joint",)), (0, ())]):
        one = night(NIGHT + timedelta(days=number), shift=shift, failing=failing)
    found = read(store, one, "differences").set_index(["metric", "row", "against"])
    both = found.loc[("text_alignment", "merged", "joint")]
    assert both["trainings"] == 3
    assert both["high"] - both["low"] < 0.5  # one night was far from all others, in both rows alike


def test_intervals_say_what_is_real_and_what_is_not(store: Store, night: Night) -> None:
    one = night(levels=BETTER)
    differences = read(store, one, "differences").set_index(["metric", "row", "against"])
    real = differences.loc[("text_alignment", "textual-inversion", "custom-diffusion")]
    assert real["high"] < 0
    assert real["value"] == pytest.approx(-0.3, abs=0.05)
    none = differences.loc[("text_alignment", "textual-inversion", "dreambooth")]
    assert none["low"] < 0 < none["high"]
    assert none["high"] - none["low"] < 0.15  # pairing takes out the prompts, whose spread is 0.3
    assert (real["concepts"], real["trainings"], real["prompts"], real["seeds"]) == (3, 1, 4, 3)
    assert verdict(store, one, "words") == "holds"
    assert verdict(store, one, "forgetting") == "holds"
    assert verdict(store, one, "share") == "holds"
    assert verdict(store, one, "regularization") == "cannot be told at this n"


def test_the_base_models_interval_is_of_prompts_and_noise_alone(store: Store, night: Night) -> None:
    found = Evidence(read(store, night(), "benchmark"), NIGHT.isoformat(), store, 0.95)
    figure = found.figure("text_alignment", "base")
    cells = [part["cell"].iloc[0] for part in found.trainings("base").values()]
    grids = np.stack([found.grids(cell)["text_alignment"] for cell in cells])
    assert figure
    assert (figure.low, figure.high) == pytest.approx(pooled_interval(grids[:, None], 0.95))
    assert pooled_interval(grids[None], 0.95) != pytest.approx((figure.low, figure.high))


def test_a_claim_that_is_false_does_not_hold(store: Store, night: Night) -> None:
    one = night(levels={("textual-inversion", "text_alignment"): 0.9, ("custom-diffusion", "kid"): 3.0})
    assert verdict(store, one, "words") == "does not hold"
    assert verdict(store, one, "forgetting") == "does not hold"


def test_a_claim_of_several_differences_needs_them_all() -> None:
    assert overall(["holds", "holds"]) == "holds"
    assert overall(["holds", "cannot be told at this n"]) == "cannot be told at this n"
    assert overall(["holds", "not measured", "cannot be told at this n"]) == "not measured"
    assert overall(["not measured", "does not hold", "holds"]) == "does not hold"


def test_one_wrong_difference_of_many_must_be_surely_wrong() -> None:
    test, loose = Wanted("text_alignment", "joint", "merged"), Figure(-0.2, -0.3, -0.1, 2, 2, 9, 9)
    assert test.verdict(loose) == "does not hold"
    assert test.verdict(loose, Figure(-0.2, -0.5, 0.1, 2, 2, 9, 9)) == "cannot be told at this n"
    assert test.verdict(Figure(0.2, 0.1, 0.3, 2, 2, 9, 9), Figure(0.2, -0.1, 0.5, 2, 2, 9, 9)) == "holds"


def test_of_several_differences_each_is_told_by_an_interval_with_its_share_of_the_error(
    store: Store, night: Night
) -> None:
    cells = read(store, night(), "benchmark")
    asked = ("text_alignment", "joint", "merged")
    strict = Evidence(cells, NIGHT.isoformat(), store, 0.95).difference(*asked, tests=10)
    alone = Evidence(cells, NIGHT.isoformat(), store, 0.995).difference(*asked)
    assert strict
    assert alone
    assert (strict.low, strict.high) == pytest.approx((alone.low, alone.high))


def test_a_claim_of_several_differences_is_not_lost_by_what_chance_does_to_one_of_them() -> None:
    """Against it by their own intervals, not by those with a share of the error each; a claim of one has all of that."""

    def difference(metric: str, row: str, against: str, tests: int = 1) -> Figure:
        assert tests in {1, *(len(one.tests) for one in CLAIMS)}
        side = 1 if metric in {"kid", "trained_share", "image_alignment_1"} else -1
        half = 0.1 if tests == 1 else 0.3
        return Figure(0.2 * side, 0.2 * side - half, 0.2 * side + half, 2, 2, 9, 9)

    found = judged(SimpleNamespace(difference=difference, beside="paper"), verdicts=True)
    assert {row["claim"]: row["verdict"] for row in found} == {
        one.name: "does not hold" if len(one.tests) == 1 else "cannot be told at this n" for one in CLAIMS
    }


# Far on the side that each claim wants: text and image alignment high, KID low, the first of two concepts weaker.
IN_FAVOUR = {
    ("custom-diffusion", "text_alignment"): 20.0,
    ("custom-diffusion", "image_alignment_training"): 20.0,
    ("dreambooth", "kid"): 20.0,
    ("unregularized", "kid"): 20.0,
    ("joint", "text_alignment"): 40.0,
    ("joint", "image_alignment_training"): 40.0,
    ("merged", "text_alignment"): 20.0,
    ("sequential", "image_alignment_1"): -20.0,
}


@pytest.mark.parametrize(("side", "said"), [(1, "holds"), (-1, "does not hold")])
def test_every_claim_holds_on_its_own_side_and_not_on_the_other(
    store: Store, night: Night, side: int, said: str
) -> None:
    one = night(levels={what: side * level for what, level in IN_FAVOUR.items()})
    found = read(store, one, "claims").groupby("claim")["verdict"].unique().map(list).to_dict()
    # The share of the network is counted, and the same on both sides.
    assert found == {claim.name: ["holds" if claim.name == "share" else said] for claim in CLAIMS}


def test_one_training_of_one_concept_says_nothing_about_trainings() -> None:
    test = Wanted("text_alignment", "joint", "merged")
    assert (
        test.verdict(Figure(0.5, 0.4, 0.6, concepts=1, trainings=1, prompts=9, seeds=9)) == "cannot be told at this n"
    )
    assert test.verdict(Figure(0.5, 0.4, 0.6, concepts=1, trainings=2, prompts=9, seeds=9)) == "holds"
    assert Wanted("kid", "joint", "merged", lower=True).verdict(Figure(0.5, 0.4, 0.6, 3, 1, 9, 9)) == "does not hold"
    assert test.verdict(None) == "not measured"


def test_a_protocol_too_short_gives_figures_and_no_verdicts(store: Store, night: Night) -> None:
    one = night(levels=BETTER, protocol=PROTOCOL.model_copy(update={"verdicts": False}))
    found = read(store, one, "claims")
    assert set(found["verdict"]) == set(found["test"]) == {"too short to tell"}
    assert found["value"].notna().all()


def test_nights_of_equal_settings_are_further_trainings(store: Store, night: Night) -> None:
    single = read(store, night(), "table").set_index(["row", "metric"])
    for number in (1, 2):
        last = night(NIGHT + timedelta(days=number))
    table = read(store, last, "table").set_index(["row", "metric"])
    found = table.loc[("joint", "text_alignment")]
    assert (found["trainings"], found["concepts"]) == (3, 2)
    assert table.loc[("base", "text_alignment"), "trainings"] == 1  # the same cell every night
    assert found["change_low"] < 0 < found["change_high"]
    assert found["change_low"] < found["change"] < found["change_high"]
    assert isnan(single.loc[("joint", "text_alignment"), "change"])
    assert isnan(table.loc[("base", "text_alignment"), "change"])  # nothing was trained anew
    changed = night(NIGHT + timedelta(days=3), levels={("base", "kid"): 7.0})
    assert (
        read(store, changed, "table").set_index(["row", "metric"]).loc[("joint", "text_alignment")]["trainings"] == 1
    )  # other settings, other trainings


def test_nights_of_other_judges_are_not_compared(store: Store, night: Night) -> None:
    for number in range(4):
        night(NIGHT + timedelta(days=number))
    other = night(NIGHT + timedelta(days=4), levels={("custom-diffusion", "text_alignment"): 5.0}, judge="another")
    assert set(read(store, other, "drift")["night"]) == {"2026-03-05"}
    assert outside(other, NIGHT + timedelta(days=4), store) == []
    table = read(store, other, "table").set_index(["row", "metric"])
    assert isnan(table.loc[("custom-diffusion", "text_alignment"), "change"])


def test_the_same_method_with_other_seeds_differs_within_the_intervals(store: Store, night: Night) -> None:
    """The noise floor: rows of one true level, told apart by no more than chance."""
    told, all_ = 0, 0
    for number in range(4):
        one = night(
            date(2026, 1, 1) + timedelta(days=40 * number), protocol=PROTOCOL.model_copy(update={"name": f"n{number}"})
        )
        found = read(store, one, "differences").query("metric == 'text_alignment'")
        told += int(((found["low"] > 0) | (found["high"] < 0)).sum())
        all_ += len(found)
    assert told / all_ < 0.08


def test_a_failed_cell_leaves_the_rest_and_says_why(store: Store, night: Night) -> None:
    one = night(levels=BETTER, failing=("custom-diffusion",))
    cells = read(store, one, "benchmark")
    lost = cells[cells["status"] == "failed"]
    assert lost["row"].tolist() == ["custom-diffusion"]
    assert lost["error"].str.startswith("TrainingError: ").all()
    # Its first cell is of the curve; the table has the row all the same.
    table = read(store, one, "table").set_index(["row", "metric"])
    assert table.loc[("custom-diffusion", "text_alignment"), "concepts"] == 3
    assert failed(one, NIGHT, store) == [f"custom-diffusion, cat, seed 2026030100: {lost['error'].iloc[0]}"]


def test_a_row_that_was_not_asked_for_is_left_out(store: Store, night: Night) -> None:
    table = read(store, night(protocol=PROTOCOL.model_copy(update={"rows": ("base", "joint")})), "table")
    assert set(table["row"]) == {"base", "joint"}


def test_a_night_without_any_cell_is_refused(store: Store, night: Night) -> None:
    protocol = PROTOCOL.model_copy(update={"rows": ("joint",), "concepts": (), "together": PROTOCOL.together[:1]})
    with pytest.raises(
        EvaluationError, match=r"benchmark: found no cell that was measured \(TrainingError: .*need one"
    ):
        night(protocol=protocol, failing=("joint",))


def test_a_night_outside_its_limits_is_found_and_others_are_not(store: Store, night: Night) -> None:
    for number in range(4):
        one = night(NIGHT + timedelta(days=number))
        assert outside(one, NIGHT + timedelta(days=number), store) == []
    day = NIGHT + timedelta(days=4)
    broken = night(day, levels={("joint", "text_alignment"): -4.0})
    found = outside(broken, day, store)
    assert len(found) == 1
    assert found[0].startswith("Custom Diffusion, joint: Text alignment -")
    assert "base" not in set(read(store, broken, "drift")["row"])


def test_nights_that_measured_something_else_are_no_chart_and_no_change(store: Store, night: Night) -> None:
    for number in range(4):
        night(NIGHT + timedelta(days=number))
    day = NIGHT + timedelta(days=4)
    other = night(day, levels={("joint", "text_alignment"): -4.0}, terms="fewer steps")
    assert outside(other, day, store) == []
    assert set(read(store, other, "drift")["night"]) == {day.isoformat()}
    assert read(store, other, "table")["change"].isna().all()


def test_what_no_training_changes_is_not_charted(store: Store, night: Night) -> None:
    drift = read(store, night(), "drift")
    assert "kid" in set(drift.loc[drift["row"] == "custom-diffusion", "metric"])
    assert set(drift.loc[drift["row"] == "textual-inversion", "metric"]) == {
        "text_alignment",
        "image_alignment_training",
    }


def test_a_damaged_night_hides_none_before_it(store: Store, night: Night, openmoji: Profile) -> None:
    first, second = night(), night(NIGHT + timedelta(days=1))
    (store.path(second) / "table.parquet").unlink()
    assert earlier(PROTOCOL, NIGHT + timedelta(days=2), openmoji, store) == (first,)


def test_a_lost_nights_rows_are_those_that_a_later_one_carries(store: Store, night: Night) -> None:
    first = night()
    night(NIGHT + timedelta(days=1))
    (store.path(first) / "table.parquet").unlink()
    third = read(store, night(NIGHT + timedelta(days=2)), "benchmark")
    assert third["night"].drop_duplicates().tolist() == [str(NIGHT + timedelta(days=day)) for day in range(3)]


def test_a_night_that_is_run_late_is_in_the_history_of_those_after_it(store: Store, night: Night) -> None:
    days = [NIGHT + timedelta(days=day) for day in range(4)]
    night(days[0])
    night(days[2])
    night(days[1])
    night(days[0], failing=("joint",))  # again, and measured otherwise
    last = read(store, night(days[3]), "benchmark")
    assert last["night"].tolist() == sorted(last["night"])
    assert last["night"].value_counts().to_dict() == dict.fromkeys(map(str, days), len(last) // 4)
    assert set(last.loc[last["status"] == "failed", "night"]) == {str(days[0])}


def test_the_limits_raise_a_false_alarm_as_seldom_as_they_say() -> None:
    rng, charts, nights = np.random.default_rng(0), 10, 4000
    alarms = 0
    for _ in range(nights):
        values = rng.normal(0, 1, (charts, 6))
        ends = [limits(one[:5].tolist(), charts) for one in values]
        alarms += any(value < low or value > high for (low, high), value in zip(ends, values[:, 5], strict=True))
    assert FALSE_ALARMS / 2 < alarms / nights < 2 * FALSE_ALARMS
    assert all(map(isnan, limits([1.0, 2.0], 1)))


def test_the_curve_has_this_nights_trainings_on_their_way(store: Store, night: Night) -> None:
    night()
    found = read(store, night(NIGHT + timedelta(days=1)), "curve")
    assert set(found["concepts"]) == {"cat"}
    assert set(found["seed"]) == {2026030200}
    assert all(part.tolist() == [0.5, 1.0] for _, part in found.groupby("row")["share"])


def test_two_base_models_have_nights_of_their_own(store: Store, night: Night, openmoji: Profile) -> None:
    other = openmoji.model_copy(update={"name": "other"})
    mine = night()
    its = tabulated(store, other, NIGHT, terms="another base model")
    tomorrow = NIGHT + timedelta(days=1)
    assert mine != its
    assert earlier(PROTOCOL, tomorrow, openmoji, store) == (mine,)
    assert earlier(PROTOCOL, tomorrow, other, store) == (its,)


def test_nights_of_more_trainings_are_no_chart_with_nights_of_one(store: Store, night: Night) -> None:
    """Their means spread less: a band drawn from them would be too narrow."""
    night(protocol=PROTOCOL.model_copy(update={"trainings": 2}))
    second = night(NIGHT + timedelta(days=1), protocol=PROTOCOL.model_copy(update={"trainings": 1}))
    drift = read(store, second, "drift")
    assert set(drift["night"]) == {(NIGHT + timedelta(days=1)).isoformat()}
