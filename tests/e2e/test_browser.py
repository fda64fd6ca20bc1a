"""The UI in a real browser: what a person sees after a run."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.doctor import BROWSERS

from .conftest import PATIENCE, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.browser]

CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PROVENANCE = re.compile("Made by this run|From the cache: made by run")  # of what other tests' runs have made before
NEEDED = "found no Chromium, need one for the browser tests; on Debian or Ubuntu: sudo apt-get install chromium"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser page, 1280 wide; skipped with the remedy where there is no Chromium, but never in CI."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail(NEEDED)
        pytest.skip(NEEDED)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        made = browser.new_page(viewport={"width": 1280, "height": 1000})
        made.set_default_timeout(1000 * PATIENCE)  # milliseconds
        yield made
        browser.close()


def test_the_flow_runs_page_shows_its_tasks(stack: Stack, first_run: dict[str, Any], page: Any, tmp_path: Path) -> None:
    page.goto(f"{stack.ui_url}/runs/flow-run/{first_run['id']}")
    page.get_by_text("Completed").first.wait_for()
    page.get_by_text(first_run["name"]).first.wait_for()
    page.get_by_text("finetune").first.wait_for()
    _shoot(page, tmp_path / "ui-flow-run.png")


@pytest.mark.parametrize(
    ("stage", "words"),
    [("retrieve", "similarity"), ("finetune", "loss"), ("evaluate", "text alignment")],
)
def test_an_artifacts_page_shows_the_stages_result(
    stack: Stack, first_run: dict[str, Any], page: Any, tmp_path: Path, stage: str, words: str
) -> None:
    wanted = {"artifacts": {"flow_run_id": {"any_": [first_run["id"]]}, "key": {"any_": [f"cat-{stage}"]}}}
    artifact = stack.post("artifacts/filter", wanted)[0]
    page.goto(f"{stack.ui_url}/artifacts/artifact/{artifact['id']}")
    page.get_by_text(PROVENANCE).first.wait_for()
    page.wait_for_function("[...document.images].some(one => one.src.startsWith('data:') && one.naturalWidth > 0)")
    broken = page.evaluate("[...document.images].filter(one => one.complete && one.naturalWidth === 0).length")
    assert broken == 0
    assert words in page.inner_text("body").lower()
    _shoot(page, tmp_path / f"ui-{stage}.png")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_fits_desktop_and_phone(
    stack: Stack, first_run: dict[str, Any], page: Any, tmp_path: Path, width: int
) -> None:
    report = stack.store.newest("report", concept="cat")
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{stack.files_url}/report/{report.key}/report.html")
    page.get_by_text("teal cat").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in requested if not url.startswith((stack.files_url, "data:"))] == []
    _shoot(page, tmp_path / f"report-{width}.png")


def _shoot(page: Any, path: Path) -> None:
    page.wait_for_timeout(500)
    page.screenshot(path=path)
    assert path.stat().st_size > 10_000
