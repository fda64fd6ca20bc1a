"""The page: everything on it, escaped, and nothing that it asks for."""

import re
from datetime import timedelta

import pandas as pd
import pytest
from matplotlib.patches import Ellipse

from customdiff_core import tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.benchmark import charts, rows
from customdiff_core.benchmark.history import PAPERS
from customdiff_core.benchmark.report import details, markdown, render, report
from customdiff_core.profiles import Profile

from ...handmade import EVIL
from .conftest import NIGHT, PROTOCOL, ROWS, tabulated


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, openmoji: Profile) -> tuple[Store, Artifact]:
    """The fifth of five nights: something holds, something does not, something failed, something left its limits."""
    store = Store(tmp_path_factory.mktemp("nights"), producer="test")
    for number in range(4):
        tabulated(store, openmoji, NIGHT + timedelta(days=number))
    levels = {("custom-diffusion", "text_alignment"): 0.8, ("joint", "text_alignment"): -4.0}
    return store, tabulated(store, openmoji, NIGHT + timedelta(days=4), levels, ("dreambooth",))


@pytest.fixture(scope="module")
def page(told: tuple[Store, Artifact], openmoji: Profile) -> str:
    return render(told[1], PROTOCOL, openmoji, told[0])


def words(page: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL).split())


def test_it_says_the_claims_with_their_verdicts_and_the_papers_figures(page: str) -> None:
    text = words(page)
    assert "Custom Diffusion follows the words of a prompt better than Textual Inversion. Holds." in text
    assert "joint training is the best in text alignment and in image alignment. Does not hold." in text
    assert "paper 0.827" in text
    assert "paper +0.125" in text
    assert "n = 3 × 1" in text
    assert "5 nights so far, from 2026-03-01" in text


def test_it_says_what_failed_and_what_lies_outside(page: str) -> None:
    text = words(page)
    assert "One cell could not be measured" in text
    assert "DreamBooth, cat, seed 2026030500" in text
    assert re.search(r"Outside the limits of the nights before: .*Custom Diffusion, joint: Text alignment −3\.", text)
    assert re.search(
        r"Trained again from other seeds, .*: \d+ of \d+ figures differ .*; "
        r"not so .*Custom Diffusion, joint, Text alignment: −4\.\d+ \(−",
        text,
    )
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert EVIL not in page


def test_it_has_every_row_its_pictures_charts_and_costs(page: str) -> None:
    assert page.count("<img ") == 2 + 1 + 3 + len(re.findall(r'alt="[a-z+]+, [^"]+"', page))
    assert len(re.findall(r'alt="cat, ', page)) == 6
    assert len(re.findall(r'alt="cat\+dog, ', page)) == len(ROWS) - 6
    assert "2.20 %" in words(page)


def test_it_tells_concept_by_concept_and_prompt_by_prompt(told: tuple[Store, Artifact], page: str) -> None:
    store, made = told
    cells = tables.read(store, made, "benchmark")
    tonight = cells[(cells["night"] == "2026-03-05") & (cells["share"] == 1) & (cells["status"] == "measured")]
    found = {one.concepts: one for one in details(tonight, PAPERS, store)}
    assert list(found) == ["cat", "dog", "house", "cat+dog", "dog+house"]
    one = found["dog"]
    mine = tonight[(tonight["concepts"] == "dog") & (tonight["row"] == "custom-diffusion")].iloc[0]
    assert dict(one.measured)["Custom Diffusion"] == pytest.approx([mine[name] for name in PAPERS])
    scores = pd.read_parquet(store.root / "cell" / mine["cell"] / "scores.parquet")
    mean = scores[(scores["metric"] == "text_alignment") & (scores["prompt_id"] == 2)]["value"].mean()
    assert one.prompts[2][1][one.titles.index("Custom Diffusion")][0] == pytest.approx(mean)
    assert len(one.prompts) == PROTOCOL.prompts
    assert f"{mean:.2f}".replace("-", "−") in words(page)


def test_it_asks_nobody_for_anything(page: str) -> None:
    body = page.replace("http://evil.example", "")
    assert "://" not in body
    assert all(uri.startswith("data:image/webp;base64,") for uri in re.findall(r'src="([^"]*)"', page))
    assert "default-src 'none'" in page
    assert len(page.encode()) < 4_000_000


def test_the_stage_writes_it_once(told: tuple[Store, Artifact], page: str, openmoji: Profile) -> None:
    store, benchmark = told
    made = report(benchmark, PROTOCOL, openmoji, store=store)
    assert (store.path(made) / "report.html").read_text() == page
    assert report(benchmark, PROTOCOL, openmoji, store=store) == made


def test_the_readmes_table_has_every_row_with_interval_and_paper(told: tuple[Store, Artifact]) -> None:
    lines = markdown(told[1], told[0]).splitlines()
    metrics = "Text alignment | paper | Image alignment | paper | KID × 10³ | paper | concepts × trainings"
    for what, together in (("One concept", False), ("Several in one picture", True)):
        place = lines.index(f"| {what} | {metrics} |")
        table = lines[place : lines.index("", place)]
        assert len(table) == 2 + sum(one.together == together for one in rows.ROWS.values())
        assert {line.count("|") for line in table} == {9}
    joint = next(line for line in lines if line.startswith("| Custom Diffusion, joint"))
    assert re.match(
        r"\| Custom Diffusion, joint \| −3\.\d+ \(.+ to .+\) \| 0\.801 \| .+ \| 0\.706 \|  \|  \| 2 × 1 \|", joint
    )
    words = next(line for line in lines if line.startswith("| Custom Diffusion follows the words of a prompt"))
    assert re.search(
        r"\| Text alignment: Custom Diffusion − Textual Inversion \| \+0\.\d+ \(\+0\.\d+ to \+0\.\d+\) \| holds \|$",
        words,
    )
    best = next(line for line in lines if "joint training is the best" in line)
    assert re.search(r"\| Text alignment: Custom Diffusion, joint − .+ \| −\d.+ \| does not hold \|$", best)
    assert any("KID of 20 pictures a cell in subsets of 10, by x; the rest by x." in line for line in lines)


def test_the_charts_show_intervals_limits_and_shares(told: tuple[Store, Artifact]) -> None:
    store, made = told
    found = {name: tables.read(store, made, name) for name in ("table", "drift", "curve", "benchmark")}
    single = charts.scatter(found["table"], found["benchmark"], together=False).axes[0]
    ellipses = [one for one in single.patches if isinstance(one, Ellipse)]
    assert len(ellipses) == 6
    mine = found["table"].set_index(["row", "metric"]).loc[("custom-diffusion", "text_alignment")]
    assert any(one.width == pytest.approx(mine["high"] - mine["low"]) for one in ellipses)
    way = charts.trade_off(found["curve"]).axes[0]
    assert {one.get_text() for one in way.texts} == {"50%", "100%"}
    panels = charts.control(found["drift"], "text_alignment").axes
    assert len(panels) == len(set(found["drift"].query("metric == 'text_alignment'")["row"]))
    assert all(one.collections for one in panels)  # the band
    outside = found["drift"].query("metric == 'text_alignment'")["outside"].astype(bool).sum()
    assert sum(len(one.lines[1].get_xdata()) for one in panels) == outside > 0
