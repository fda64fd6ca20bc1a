import logging
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pandas as pd
import pytest

from customdiff_core import concepts, tables
from customdiff_core.artifacts import Artifact, Manifest, Store
from customdiff_core.concepts import Concept
from customdiff_core.errors import TooFewImagesError
from customdiff_core.lineage import Lineage, Taught
from customdiff_core.recipes import Recipe
from customdiff_core.retrieval.account import Account
from customdiff_core.settings import Settings
from tasks import pages, publish

from ..handmade import EVIL, attempts, metrics, regularization, run, samples, say

RUN = "customize-cat (0d9f)"
PAIR = (
    Taught(name="dog", category="dog", modifier_token="<b>"),
    Taught(name="cat", category="cat", modifier_token="<a>"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for all tests here: they read."""
    return Store(tmp_path_factory.mktemp("store"), producer=RUN)


@pytest.fixture(scope="module")
def chain(store: Store, cat: Concept) -> dict[str, Artifact]:
    return run(store, cat)


@pytest.fixture(scope="module")
def built(store: Store, chain: dict[str, Artifact], cat: Concept) -> dict[str, str]:
    """Every page."""
    return {
        "index": pages.indexed(chain["index"], store),
        "retrieve": pages.retrieved(cat, chain["regularization"], store),
        "augment": pages.augmented(cat, chain["training_set"], store),
        "finetune": pages.finetuned((cat,), chain["delta"], store),
        "evaluate": pages.evaluated(cat, chain["metrics"], store),
        "generate": pages.generated(next(store.manifests("samples")).artifact, Lineage(concepts=PAIR[:1]), store),
        "report": pages.reported((cat,), chain["metrics"], store),
    }


def manifest(producer: str) -> Manifest:
    return Manifest(
        artifact=Artifact(kind="delta", key="k", sha256="0", rows=1),
        recipe=Recipe(kind="delta", inputs={}, config={}, code="", versions={}),
        files=(),
        created=datetime(2026, 5, 3, 14, 2, tzinfo=UTC),
        seconds=21.48,
        producer=producer,
    )


@pytest.mark.parametrize(
    ("producer", "line"),
    [
        (RUN, "Made by this run in 21.5 s."),
        (
            "customize-cat (77aa)",
            "From the cache: made by run `customize-cat` on 2026-05-03 14:02 UTC (21.5 s then).",
        ),
        ("library", "From the cache: made by the library on 2026-05-03 14:02 UTC (21.5 s then)."),
    ],
)
def test_provenance_tells_this_run_from_another(producer: str, line: str) -> None:
    assert pages.provenance(manifest(producer), RUN) == line


def test_every_page_begins_with_its_provenance(built: dict[str, str]) -> None:
    for page in built.values():
        assert page.startswith("Made by this run in ")


def test_every_page_shows_pictures_and_stays_below_the_limit(built: dict[str, str]) -> None:
    for name, page in built.items():
        assert ("data:image/webp;base64," in page) == (name != "report")
        assert len(page.encode()) < pages.LIMIT


def test_captions_and_prompts_are_no_markup(built: dict[str, str]) -> None:
    for name in ("index", "retrieve", "evaluate", "generate"):
        page = re.sub(r"\(data:[^ )]*", "(data", built[name])
        assert "script" in page, name
        assert not re.search(r"(?<!\\)<script", page)
        assert "http://" not in page
        assert "](javascript" not in page
        assert not re.search(r"(?<!\\)`", page.split("\n", 1)[1])


def test_text_and_labels_lose_what_could_be_markup() -> None:
    assert pages.escape("a <b> | c\n*d* www.x.org") == r"a \<b\> \| c \*d\* www\.x\.org"
    assert pages.image("data:x", 'a <teal-cat> "cat" [x](y)|') == '![a ‹teal-cat› cat xy](data:x "a ‹teal-cat› cat xy")'


def test_tables_have_as_many_cells_in_every_row(built: dict[str, str]) -> None:
    """In the retrieval's page, the tables of images and of the funnel have six, that of hosts three, that of reasons two."""
    for name, columns in (("index", {5}), ("retrieve", {6, 3, 2}), ("augment", {4}), ("finetune", {4})):
        rows = [line for line in built[name].splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", row)) - 1 for row in rows} == columns, name


def test_thumbnails_shrink_until_the_page_fits(store: Store, cat: Concept, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = regularization(store, 40)
    large = pages.retrieved(cat, artifact, store)
    monkeypatch.setattr(pages, "LIMIT", len(large.encode()) // 2)
    assert len(pages.retrieved(cat, artifact, store).encode()) < len(large.encode()) // 2
    monkeypatch.setattr(pages, "LIMIT", 500)
    assert str(store.path(artifact)) in pages.retrieved(cat, artifact, store)


def test_more_prompts_than_a_page_holds_are_left_to_the_report(
    store: Store, cat: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PROMPTS_SHOWN", 2)
    page = pages.evaluated(cat, metrics(store, cat, tuple(f"a {{}} number {number}" for number in range(5))), store)
    assert "a cat number 1 |" in page
    assert "a cat number 2 |" not in page
    assert "3 more prompts are in the report" in page


def test_the_evaluation_page_has_figures_with_intervals_and_every_prompt(built: dict[str, str]) -> None:
    page = built["evaluate"]
    assert "| Text alignment | 1.940 | 1.480 | −0.460 (−0.620 to −0.310) |" in page
    assert "as bars, 95 % intervals" in page
    assert r"| a crying cat | a crying \<teal\-cat\> cat |" in page


def test_the_retrieval_page_gives_similarities_with_links_that_cannot_break_out(built: dict[str, str]) -> None:
    link = "https://a.example/x%20y%281%29%22%7C%60%3Cb%3E.jpg"
    assert f"| 1.000 | [0.990]({link}) | [0.980]({link}) |" in built["retrieve"]
    assert "](javascript" not in built["retrieve"]


def test_the_retrieval_page_shows_where_the_hits_went(built: dict[str, str]) -> None:
    page = built["retrieve"]
    assert (
        "| Hits | Unique | Tried | Alive | Valid | Kept |\n| --- | --- | --- | --- | --- | --- |\n| 80 | 70 | 60 | 50 | 30 | 30 |"
        in page
    )
    assert "| same image as a better hit | 10 |" in page
    assert r"| b\|b | 39 | 67 % |" in page  # of hosts, those with most links first
    assert "| a\\.example | 21 | 67 % |" in page


def test_a_retrieval_that_fell_short_says_what_to_do(sent: list[tuple[str, str]], cat: Concept) -> None:
    reasons = ["link dead"] * 8 + [""] * 2
    story = Account(pd.DataFrame({"cand_id": range(10), "drop_reason": reasons}), attempts(2).query("cand_id < 10"))
    publish.too_few(cat, TooFewImagesError("regularization images: found 2 <of> 10, need 5; x", story))
    ((key, page),) = sent
    assert key == "cat-retrieve"
    assert r"found 2 \<of\> 10\, need 5" in page
    assert "**What to do:** raise retrieve" in page
    assert "| Hits | Unique |" in page


def test_the_augmentation_page_gives_every_views_prompt(built: dict[str, str]) -> None:
    prompt = "photo of a<br>\\<teal\\-cat\\><br>cat"
    assert f"| {prompt} | very small<br>{prompt} | zoomed in<br>{prompt} | {prompt} |" in built["augment"]


def test_the_finetuning_page_has_every_preview(built: dict[str, str]) -> None:
    assert "| step 20 | step 20 | step 40 | step 40 |" in built["finetune"]


def test_the_report_page_links_the_served_file(built: dict[str, str], chain: dict[str, Artifact]) -> None:
    assert f"]({Settings().files_url}/report/{chain['metrics'].key}/report.html)" in built["report"]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, store: Store) -> list[tuple[str, str]]:
    """What was sent: keys and markdown."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(publish, "store", lambda: store)
    monkeypatch.setattr(publish, "create_markdown_artifact", lambda markdown, key: calls.append((key, markdown)))
    return calls


def test_each_stage_sends_its_page_under_a_key_of_its_own(
    sent: list[tuple[str, str]], store: Store, chain: dict[str, Artifact], cat: Concept
) -> None:
    named = cat.model_copy(update={"name": "my_cat"})
    publish.indexed(chain["index"])
    publish.retrieved(cat, chain["regularization"])
    publish.augmented(cat, chain["training_set"])
    publish.finetuned((named,), chain["delta"])
    publish.evaluated(cat, chain["metrics"])
    publish.reported((cat,), chain["metrics"])
    publish.generated(next(store.manifests("samples")).artifact, Lineage())
    assert [key for key, _ in sent] == [
        "openmoji-index",
        "cat-retrieve",
        "cat-augment",
        "my-cat-91b1583b-finetune",
        "cat-evaluate",
        "cat-report",
        "generate",
    ]
    assert sent[1][1] == pages.retrieved(cat, chain["regularization"], store)


def test_concepts_whose_keys_would_be_one_have_keys_of_their_own(cat: Concept) -> None:
    mine, mine_too, one, two, both = (
        cat.model_copy(update={"name": name}) for name in ("my_cat", "my-cat", "cat", "dog", "cat-dog")
    )
    assert (publish.named(one), publish.named(one, two)) == ("cat", "cat-dog")
    found = {publish.named(*group) for group in ((mine,), (mine_too,), (both,), (one, two), (two, one))}
    assert len(found) == 5
    assert all(re.fullmatch("[a-z0-9-]+", key) for key in found)


@pytest.mark.parametrize(("where", "name"), [(publish, "create_markdown_artifact"), (pages, "finetuned")])
def test_a_page_that_the_server_does_not_take_or_nobody_can_build_is_logged_and_the_run_goes_on(
    where: Any,
    name: str,
    sent: list[tuple[str, str]],
    chain: dict[str, Artifact],
    cat: Concept,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(where, name, refuse)
    publish.finetuned((cat,), chain["delta"])
    assert sent == []
    assert "cat-finetune: not shown in the UI (ConnectionError: server away)" in caplog.text


def test_costs_that_nobody_knows_are_a_dash() -> None:
    """As the memory of a training that was taken up after its last step."""
    assert pages._cost(None, 1e6, 0) == "–"  # pyright: ignore[reportPrivateUsage]
    assert pages._cost(2.5e6, 1e6, 1) == "2.5"  # pyright: ignore[reportPrivateUsage]


def test_images_that_the_model_drew_are_not_said_to_have_been_found(store: Store, cat: Concept) -> None:
    page = pages.retrieved(cat, regularization(store, drawn=True), store)
    assert "30 images that the base model itself drew for “photo of a cat”" in page
    assert "nearest" not in page


def refuse(*args: Any, **kwargs: Any) -> None:
    raise ConnectionError("server away")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(publish.time, "monotonic", one.monotonic)
    return one


def test_progress_moves_every_two_seconds_logs_every_five_and_ends_full(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[tuple[float, str, str]] = []
    updates: list[float] = []
    number = uuid4()

    def create(progress: float, key: str, description: str) -> UUID:
        made.append((progress, key, description))
        return number

    monkeypatch.setattr(publish, "create_progress_artifact", create)
    monkeypatch.setattr(publish, "update_progress_artifact", lambda artifact, percent, words: updates.append(percent))
    caplog.set_level(logging.INFO)
    with publish.progress("my_cat-finetune", "Training steps") as tell:
        for step in range(1, 11):
            tell(step, 10, f"loss {step}")
            clock.now += 1

    assert made == [(0.0, "my-cat-finetune-progress", "Training steps")]
    assert updates == [10, 30, 50, 70, 90, 100]
    assert [record.getMessage() for record in caplog.records] == [
        "Training steps: 1 of 10, loss 1",
        "Training steps: 6 of 10, loss 6, 1 a second, 0:00:04 left",
    ]


def test_progress_survives_a_server_that_is_away_and_asks_it_rarely(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(publish, "create_progress_artifact", lambda *args, **kwargs: uuid4())

    def update(artifact: UUID, percent: float, words: str) -> None:
        asked.append(percent)
        refuse()

    monkeypatch.setattr(publish, "update_progress_artifact", update)
    with publish.progress("cat-finetune", "Training steps") as tell:
        for step in range(100):
            tell(step, 100)
            clock.now += 1
    assert asked == [0, 60, 100]


def test_progress_that_could_not_be_made_is_not_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "create_progress_artifact", refuse)
    monkeypatch.setattr(publish, "update_progress_artifact", lambda *args: pytest.fail("nothing to update"))
    with publish.progress("cat-finetune", "Training steps") as tell:
        tell(1, 0)


def test_a_failing_stage_still_fails_and_leaves_its_bar_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[float] = []
    monkeypatch.setattr(publish, "create_progress_artifact", lambda *args, **kwargs: uuid4())
    monkeypatch.setattr(publish, "update_progress_artifact", lambda artifact, percent, words: updates.append(percent))

    def stage() -> None:
        with publish.progress("cat-finetune", "Training steps") as tell:
            tell(1, 4)
            raise ValueError("bad input")

    with pytest.raises(ValueError, match="bad input"):
        stage()
    assert updates == [25]


def test_outside_a_run_the_store_names_the_library() -> None:
    from tasks.stores import store

    assert store().producer == "library"


def test_in_a_run_the_store_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.stores import store

    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__NAME", "customize-cat")
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", "0d9f")
    assert store().producer == RUN


# Merges


def made(store: Store, kind: str, **content: Any) -> Artifact:
    def produce(folder: Path) -> int:
        for name, rows in content.items():
            tables.write(folder / f"{name}.parquet", rows)
        if kind == "delta":
            say(folder, *PAIR)
        return 1

    return store.make(Recipe(kind=kind, inputs={}, config={"kind": kind}, code="", versions={}), produce)


ORDER = r"In prompts: \{0\} \<b\> dog\, \{1\} \<a\> cat."


def test_drawn_prompts_of_several_concepts_say_what_the_places_stand_for(store: Store, chain: dict[str, Artifact]):
    drawn = samples(store, ("two <a> cat",), "places")
    assert ORDER in pages.generated(drawn, Lineage(concepts=PAIR), store)
    assert "In prompts" not in pages.generated(drawn, Lineage(concepts=PAIR[:1]), store)


def test_a_merge_says_its_worst_errors_and_what_is_no_constraint(store: Store):
    row = {"strength": 1.0, "constraints": 6, "error_all_rows": 0.07}
    row |= {"condition_regularization": 2e4, "condition_targets": 15.0, "constraint_error_cast": 9e-8}
    report = [
        {"layer": layer, "concept": "cat", "constraint_error": error} | row
        for layer, error in (("a", 1e-15), ("b", 7e-12))
    ]
    words = {
        "concept": "cat",
        "part": "1",
        "original_token": "<x>",
        "modifier_token": "<x-2>",
        "prompt": "p",
        "token": EVIL,
    }
    rows = [words | {"state": state} for state in ("constraint", "shared")]
    lost = [{"layer": layer, "concept": "dog", "part": "2"} for layer in ("q", "out")]
    delta = made(store, "delta", merge=report, rows=rows, dropped=lost)
    assert "not drawn" not in pages.merged(delta, (), store)
    page = pages.merged(delta, (f"{EVIL}: no image alignment",), store)
    assert "What is not drawn or measured:\n\n* " in page
    assert "| cat | 1 | 6 | 7.0e-12 | 9.0e-08 | 0.070 |" in page
    assert "2 layers, solved together" in page
    assert "* shared: " in page
    assert r"* 2 changes of queries and outputs by dog are dropped\:" in page
    assert ORDER in page
    assert page.count(r"* \<x\> of cat is \<x\-2\> now\: another concept is \<x\>") == 1
    assert "<script>" not in page


def test_several_concepts_are_shown_by_every_model_with_the_judges_own_figures(store: Store, cat: Concept):
    subjects = {name: samples(store, ("a cat and " + EVIL,), name) for name in ("base", "merged")}
    cell = {"value": 0.5, "ci_low": 0.25, "ci_high": 0.75, "n": 8}
    figures = [{"subject": name, "metric": "all_present"} | cell for name in (*subjects, "merged - base")]
    figures += [{"subject": "judge", "metric": "said to show all, of pictures that do"} | cell]
    sources = [{"name": name, **one.model_dump()} for name, one in subjects.items()]
    page = pages.evaluated_together((cat, cat), made(store, "together", metrics=figures, sources=sources), store)
    assert "the teal cat and the teal cat" in page
    assert "0.500 (0.250 to 0.750)" in page
    assert "0.50 of 8" in page
    assert page.count("data:image/webp") == 2
    assert "<script>" not in page


def test_what_a_merge_leaves_out_is_in_the_log(
    chain: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(pages, "merged", lambda delta, left_out, here: "")
    monkeypatch.setattr(publish, "create_markdown_artifact", lambda markdown, key: None)
    publish.merged(chain["delta"], ("<x> cat: no image alignment",))
    assert "<x> cat: no image alignment" in caplog.text


def test_a_concept_without_pictures_is_said_to_have_no_image_alignment(store: Store, cat: Concept):
    other = concepts.of_taught(Taught(name="x", category="dog", modifier_token="<x>"))
    figures = [{"subject": "base", "metric": "all_present", "value": 0.5, "ci_low": 0.2, "ci_high": 0.7, "n": 8}]
    sources = [{"name": "base", **samples(store, ("a cat and a dog",), "alone").model_dump()}]
    page = pages.evaluated_together((cat, other), made(store, "together", metrics=figures, sources=sources), store)
    assert r"No image alignment with \<x\> dog, since none of the pictures are here" in page


def test_how_far_the_weights_moved_is_shown_where_several_kinds_were_trained(built: dict[str, str]):
    assert "| cross-attention | 0.0100 | 0.0100 | 1 |" in built["finetune"]
    assert "figure 3" in built["finetune"]
