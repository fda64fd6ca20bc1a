import re
from pathlib import Path

import pytest

from customdiff_core import stages
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.errors import StoreError
from customdiff_core.evaluation.report import render, report
from customdiff_core.evaluation.results import Cell, compare, interval, number, side_by_side, sources, views
from customdiff_core.profiles import Profile

from ...handmade import EVIL, METRICS, SEEDS, metrics_table, png, regularization, run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for all tests here: they read."""
    return Store(tmp_path_factory.mktemp("store"), producer="test")


@pytest.fixture(scope="module")
def chain(store: Store, cat: Concept) -> dict[str, Artifact]:
    return run(store, cat)


@pytest.fixture(scope="module")
def page(store: Store, chain: dict[str, Artifact], cat: Concept, openmoji: Profile) -> str:
    return render(cat, chain, openmoji, store)


def words(page: str) -> str:
    """The page as it is read: without tags, on one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_the_page_asks_nobody_for_anything(page: str) -> None:
    body = page.replace("http://evil.example", "")  # the caption's own text, which is not a link
    assert "://" not in body
    assert not re.search(r"<(script|link rel=\"stylesheet|iframe|object)", page)
    assert all(uri.startswith("data:image/webp;base64,") for uri in re.findall(r'src="([^"]*)"', page))
    assert "default-src 'none'" in page


def test_captions_prompts_and_titles_are_escaped(
    store: Store, chain: dict[str, Artifact], cat: Concept, openmoji: Profile
) -> None:
    hostile = cat.model_copy(update={"title": EVIL, "attribution": EVIL, "licence": EVIL})
    page = render(hostile, chain, openmoji, store)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 30 + 4
    assert not re.search(r'(title|alt)="[^"]*<', page)


def test_the_page_is_small_enough_to_send(page: str) -> None:
    assert len(page.encode()) < 4_000_000


def test_equal_artifacts_give_an_equal_page(
    page: str, store: Store, chain: dict[str, Artifact], cat: Concept, openmoji: Profile
) -> None:
    assert render(cat, chain, openmoji, store) == page


def test_images_that_the_model_drew_are_not_said_to_have_been_found(
    store: Store, chain: dict[str, Artifact], cat: Concept, openmoji: Profile
) -> None:
    page = words(render(cat, chain | {"regularization": regularization(store, drawn=True)}, openmoji, store))
    assert "30 pictures that the base model itself drew for “photo of a cat”" in page
    assert "nearest to “photo of a cat”" not in page


def test_steps_and_seconds_are_those_that_were_trained(page: str) -> None:
    """And not those asked for, or of the process that trained the last of them."""
    assert "After 40 training steps (8 seconds)" in words(page)


def test_a_chain_with_a_hole_says_which_stage_is_gone(
    store: Store, chain: dict[str, Artifact], cat: Concept, openmoji: Profile
) -> None:
    hole = {kind: one for kind, one in chain.items() if kind not in ("training_set", "regularization")}
    with pytest.raises(
        StoreError, match=r"found no regularization, training_set that it was made from.*run customize/cat again"
    ):
        report(cat, hole, openmoji, store=store)


def test_every_prompt_is_shown_with_every_seed_of_both_models(page: str) -> None:
    shown = re.findall(r'alt="(base|customized): ([^"]*), seed (\d+)"', page)
    assert len(shown) == 2 * 2 * len(SEEDS)
    assert ("customized", "a crying &lt;teal-cat&gt; cat", "1") in shown
    assert ("base", "a crying cat", "0") in shown


def test_the_hero_takes_the_first_seed_of_the_first_prompts_and_says_so(page: str) -> None:
    assert "Not picked: the first 2 prompts of the list, and of each the first image (seed 0)" in words(page)


def test_the_sentence_says_what_the_intervals_allow(page: str) -> None:
    text = words(page)
    assert "looks more like the concept than what it drew for “cat” before (image alignment 0.03 → 0.40)" in text
    assert "it follows the words of a prompt less closely (text alignment 1.94 → 1.48)" in text
    assert "ordinary pictures of the category came out worse (KID −0.39 → 0.54)" in text


def test_each_metric_is_told_with_its_interval(page: str) -> None:
    text = words(page)
    assert "1.940 1.840 to 2.040" in text
    assert "−0.460 −0.620 to −0.310" in text
    assert "95 %" in text


def test_the_image_nearest_to_a_training_picture_is_shown(page: str) -> None:
    assert "Of 4 images this one is nearest to a training picture, with a cosine of 0.90" in words(page)


def test_every_setting_and_key_is_listed(page: str, chain: dict[str, Artifact], cat: Concept) -> None:
    text = words(page)
    assert "learning_rate" in text
    assert "0.0005" in text
    assert "sample.sampler" in text
    for artifact in chain.values():
        assert f"{artifact.kind}/{artifact.key}" in page
        assert artifact.sha256[:32] in page
    assert cat.attribution in text


def test_a_profile_with_its_own_index_has_no_index_stage(
    store: Store, chain: dict[str, Artifact], cat: Concept, openmoji: Profile
) -> None:
    rest = {kind: one for kind, one in chain.items() if kind != "index"}
    assert "<summary>Index</summary>" not in render(cat, rest, openmoji, store)


def test_a_concept_without_held_out_pictures_says_nothing_of_them(
    store: Store, chain: dict[str, Artifact], cat: Concept, openmoji: Profile
) -> None:
    page = render(cat.model_copy(update={"held_out": ()}), chain, openmoji, store)
    assert "were held out" not in page


def test_the_stage_writes_one_file_and_is_cached(
    store: Store, chain: dict[str, Artifact], cat: Concept, openmoji: Profile
) -> None:
    made = report(cat, chain, openmoji, store=store)
    assert (store.path(made) / "report.html").read_text() == render(cat, chain, openmoji, store)
    assert store.find(stages.report(cat, chain, openmoji)) == made
    assert store.newest("report", concept="cat", profile="openmoji") == made


def test_the_key_follows_the_artifacts_the_words_and_the_template(
    chain: dict[str, Artifact], cat: Concept, openmoji: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = stages.report(cat, chain, openmoji).key
    other = chain | {"delta": chain["delta"].model_copy(update={"sha256": "f" * 64})}
    assert stages.report(cat, other, openmoji).key != key
    assert stages.report(cat.model_copy(update={"title": "a cat"}), chain, openmoji).key != key
    template = tmp_path / "template"
    template.write_text("other words")
    monkeypatch.setattr(stages, "REPORT_TEMPLATE", template)
    assert stages.report(cat, chain, openmoji).key != key


def test_side_by_side_orders_by_seed_and_takes_the_first(store: Store, chain: dict[str, Artifact]) -> None:
    first, _ = side_by_side(chain["metrics"], store, seeds=1)
    assert (first.base_prompt, first.prompt) == ("a crying cat", "a crying <teal-cat> cat")
    assert first.base == [png(0)]


def test_sources_are_the_sample_sets_that_were_measured(store: Store, chain: dict[str, Artifact]) -> None:
    found = sources(chain["metrics"], store)
    assert list(found) == ["base", "customized"]
    assert store.get("samples", found["base"].key) == found["base"]


def test_views_carry_their_masks(store: Store, chain: dict[str, Artifact]) -> None:
    whole, small, *_ = views(chain["training_set"], store)
    assert len(_) == 2
    assert whole["mask"].all()
    assert small["mask"].shape == (8, 8)
    assert small["mask"].sum() == 6


def test_compare_reads_the_table_in_a_fixed_order() -> None:
    found = {one.metric: one for one in compare(metrics_table())}
    assert set(found) == set(METRICS)
    assert found["text_alignment"].difference == Cell(-0.46, -0.62, -0.31)
    assert found["kid"].difference == Cell(0.93, 0.71, 1.15)


@pytest.mark.parametrize(
    ("low", "high", "change"), [(-0.62, -0.31, "down"), (0.27, 0.52, "up"), (-0.1, 0.3, "same"), (-0.3, 0.1, "same")]
)
def test_a_change_is_named_only_where_the_paired_interval_says_so(low: float, high: float, change: str) -> None:
    table = metrics_table()
    table.loc[(table["metric"] == "kid") & (table["subject"] == "difference"), ["ci_low", "ci_high"]] = low, high
    found = {one.metric: one for one in compare(table)}
    assert found["kid"].change == change


@pytest.mark.parametrize(("half", "change"), [(0.1, "up"), (0.6, "same")])
def test_without_a_paired_difference_both_intervals_must_be_apart(half: float, change: str) -> None:
    """As in tables that were made before KID had one."""
    table = metrics_table(half).query("not (metric == 'kid' and subject == 'difference')")
    found = {one.metric: one for one in compare(table)}
    assert (found["kid"].difference, found["kid"].change) == (None, change)


def test_figures_are_written_with_a_true_minus_sign() -> None:
    assert number(-0.4567) == "−0.457"
    assert number(0.4567, digits=1, signed=True) == "+0.5"
    assert interval(Cell(0, -1, 1), digits=1, signed=True) == "−1.0 to +1.0"
