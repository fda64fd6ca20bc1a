"""`benchmark/quick`, really and small: killed and started again, with a cell that fails, on two nights, and its page."""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from customdiff_core import tables
from customdiff_core.artifacts import Artifact
from customdiff_core.benchmark.cells import training_seed

from .conftest import Stack, until
from .test_browser import CHROMIUM, FLAGS, NEEDED

pytestmark = pytest.mark.e2e
BROKEN = "no-such-concept"
SMALL: dict[str, Any] = {
    "protocol": "openmoji-quick",
    "night": "2020-03-01",
    "change": {
        "concepts": ["cat", BROKEN],
        "together": [{"concepts": ["cat", "dog"]}],
        "rows": ["base", "custom-diffusion", "merged"],
        "share": 0.005,
        "prompts": 2,
        "prompts_together": 2,
        "seeds": 2,
        "sample": {"steps": 2},
        "kid_images": 12,
        "kid_subset_size": 6,
    },
}


@pytest.fixture(scope="module")
def first(stack: Stack) -> dict[str, Any]:
    """A night killed with -9 once one of its cells is done, and started again when the server had been, too."""
    run = stack.start("benchmark/quick", **SMALL)
    until(lambda: list(stack.store.manifests("cell")), "the first cell")
    for process in stack.engines(run):
        process.kill()
    stack.wait(run, {"CRASHED"})
    for command in ("down", "up"):
        done = stack.local(command)
        assert done.returncode == 0, done.stdout + done.stderr
    stack.pause_schedules()
    return stack.run("benchmark/quick", **SMALL)


def night_of(stack: Stack, run: str) -> Artifact:
    return next(one.artifact for one in stack.store.manifests("benchmark") if run in one.producer)


def test_started_again_it_does_only_what_is_missing_and_names_the_cells_that_fail(
    stack: Stack, first: dict[str, Any]
) -> None:
    cells = tables.read(stack.store, night_of(stack, first["id"]), "benchmark")
    lost = cells[cells["status"] == "failed"]
    assert set(lost["concepts"]) == {BROKEN}
    assert len(lost) == 2
    assert lost["error"].str.startswith("ConceptError: concept: found 'no-such-concept', need one of car").all()
    assert set(cells.loc[cells["status"] == "measured", "concepts"]) == {"cat", "cat+dog"}
    again = [one for one in stack.store.manifests("cell") if first["id"] in one.producer]
    assert 0 < len(again) <= 2  # of three: the rest is the killed run's
    tasks = stack.post("task_runs/filter", {"flow_runs": {"id": {"any_": [first["id"]]}}})
    states = [task["state_name"] for task in tasks if "seed 2020030100" in task["name"]]
    assert states.count("Cached") == 3 - len(again)
    assert states.count("Failed") == 2
    shown = stack.artifacts(first["id"])["benchmark-openmoji-quick"]
    assert r"not measured: base\, no\-such\-concept" in shown
    assert "too short to tell" in shown


def test_an_unbroken_night_has_the_same_figures(stack: Stack, first: dict[str, Any]) -> None:
    broken = night_of(stack, first["id"])
    before = tables.read(stack.store, broken, "table")
    mine = [one.artifact for one in stack.store.manifests("cell") if one.recipe.labels["protocol"] == "openmoji-quick"]
    seeds = {training_seed(2020030100, concept) for concept in ("cat", "dog")}
    trained = [one.artifact for one in stack.store.manifests("delta") if one.recipe.config.get("seed") in seeds]
    assert trained
    for one in (*mine, *trained, broken):
        shutil.rmtree(stack.store.path(one))
    for kind in ("delta", "embeddings"):
        shutil.rmtree(stack.store.root / "checkpoints" / kind)
    run = stack.run("benchmark/quick", **SMALL)
    after = tables.read(stack.store, night_of(stack, run["id"]), "table")
    same = [table[~table["metric"].isin(["seconds", "memory"])].reset_index(drop=True) for table in (before, after)]
    assert same[0].equals(same[1])


@pytest.fixture(scope="module")
def planned(stack: Stack, first: dict[str, Any]) -> Iterator[str]:
    """Another night, planned by a schedule like the nightly one's, brought forward to one of the next minutes: its run."""
    quick = stack.post("deployments/name/benchmark/quick", method="GET")["id"]
    soon = datetime.now(UTC) + timedelta(seconds=140)  # to the minute: in 80 s at the earliest
    tonight = {name: value for name, value in SMALL.items() if name != "night"}
    plan = {"schedule": {"cron": f"{soon.minute} {soon.hour} * * *", "timezone": "UTC"}, "parameters": tonight}
    [made] = stack.post(f"deployments/{quick}/schedules", [plan | {"active": True}])
    due = {"flow_runs": {"expected_start_time": {"before_": (soon + timedelta(minutes=2)).isoformat()}}}
    wanted = due | {"deployments": {"id": {"any_": [quick]}}}
    runs = until(
        lambda: [one for one in stack.post("flow_runs/filter", wanted) if one["auto_scheduled"]], "the schedule's run"
    )
    yield runs[0]["id"]
    stack.post(f"deployments/{quick}/schedules/{made['id']}", method="DELETE")


@pytest.fixture(scope="module")
def automation(stack: Stack) -> str:
    """The example's name, as the server has taken it."""
    made = stack.command("prefect", "automation", "create", "--from-file", "deployments/automation-drift.yaml")
    assert made.returncode == 0, made.stdout + made.stderr
    return "benchmark outside its limits"


@pytest.fixture(scope="module")
def scheduled(stack: Stack, planned: str, automation: str) -> dict[str, Any]:
    """That night, when it is over."""
    run = stack.wait(planned)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    return run


def test_the_schedule_makes_runs(stack: Stack, planned: str) -> None:
    nightly = stack.post("deployments/name/benchmark/nightly", method="GET")
    [schedule] = nightly["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 3 * * *", "UTC")
    stack.post(f"deployments/{nightly['id']}/schedules/{schedule['id']}", {"active": True}, method="PATCH")
    wanted = {
        "deployments": {"id": {"any_": [nightly["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    scheduled = until(lambda: stack.post("flow_runs/filter", wanted), "the scheduled runs")
    assert all(one["auto_scheduled"] for one in scheduled)
    assert {one["expected_start_time"][11:16] for one in scheduled} == {"03:00"}
    stack.post(f"deployments/{nightly['id']}/schedules/{schedule['id']}", {"active": False}, method="PATCH")


def test_a_search_chooses_on_one_concept_and_tests_on_another(stack: Stack, planned: str) -> None:
    small = {name: SMALL["change"][name] for name in ("prompts", "seeds", "sample", "kid_images", "kid_subset_size")}
    trials = [{"steps": [1, 2]}, {"steps": 3, "learning_rate": 1e30}]  # whose loss is soon no number
    change = small | {"concept": "cat", "tested": ["dog"], "trials": trials, "trainings": 1, "lost": 5}
    run = stack.run("search/custom-diffusion", change=change)
    shown = stack.artifacts(run["id"])["search-openmoji-custom-diffusion"]
    assert "Tested on dog" in shown
    assert "failed: TrainingError" in shown
    assert "data:image/" in shown
    found = next(one.artifact for one in stack.store.manifests("search") if run["id"] in one.producer)
    table = tables.read(stack.store, found, "trials")
    assert list(table["concept"]) == ["cat"] * 4 + ["dog"] * 2
    best = table[table["concept"] == "cat"].iloc[1:]["image"].idxmax()
    assert list(table.index[table["chosen"] & (table["concept"] == "cat")]) == [best]


def test_another_night_trains_anew_by_its_date_and_stands_beside_the_first(
    stack: Stack, scheduled: dict[str, Any], automation: str
) -> None:
    run = scheduled
    table = night_of(stack, run["id"])
    date = str(run["expected_start_time"])[:10]
    cells = tables.read(stack.store, table, "benchmark")
    assert sorted(set(cells["night"])) == ["2020-03-01", date]
    assert set(cells.loc[cells["night"] == date, "seed"]) == {int(date.replace("-", "") + "00")}
    nights = tables.read(stack.store, table, "drift").groupby(["row", "metric"])["night"].nunique()
    assert set(nights) == {2}
    events = {"filter": {"event": {"name": ["customdiff.benchmark.incomplete"]}}}
    found = until(lambda: stack.post("events/filter", events)["events"], "the event")
    assert found[0]["resource"]["prefect.resource.id"] == "customdiff.benchmark.openmoji-quick"
    assert any("ConceptError" in one for one in found[0]["payload"]["what"])
    events["filter"]["event"]["name"] = ["prefect.automation.triggered"]
    triggered = until(lambda: stack.post("events/filter", events)["events"], "the automation")
    assert {one["resource"]["prefect.resource.name"] for one in triggered} == {automation}


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_fits_desktop_and_phone(
    stack: Stack, scheduled: dict[str, Any], tmp_path: Path, width: int, scheme: Any
) -> None:
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(NEEDED)
    from playwright.sync_api import sync_playwright

    report = stack.store.newest("report", protocol="openmoji-quick")
    requested: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("request", lambda request: requested.append(request.url))
        page.goto(f"{stack.files_url}/report/{report.key}/report.html")
        page.get_by_text(f"The paper’s table, measured on {str(scheduled['expected_start_time'])[:10]}").wait_for()
        page.get_by_alt_text("Control chart of Text alignment").wait_for()
        page.get_by_text("2 nights so far").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(one => one.naturalWidth > 0)")
        picture = tmp_path / f"benchmark-{width}.png"
        page.screenshot(path=picture, full_page=True)
        browser.close()
    assert picture.stat().st_size > 10_000
    assert [url for url in requested if not url.startswith((stack.files_url, "data:"))] == []
