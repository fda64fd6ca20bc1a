import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from customdiff_core import concepts, images, profiles, tables
from customdiff_core.config import FetchConfig, IndexConfig, RetrieveConfig
from customdiff_core.errors import ConfigError, RetrievalError, TooFewImagesError
from customdiff_core.retrieval.account import Account, account
from customdiff_core.retrieval.encoder import Encoder
from customdiff_core.retrieval.fetch import url_digest
from customdiff_core.retrieval.retrieve import build_index, retrieve, retrieve_all

from .conftest import write_index


def test_exactly_as_many_as_asked_and_all_different(chain):
    table = tables.read(chain.store, chain.regularization, "regularization")
    assert len(table) == chain.regularization.rows == 24
    assert table["source_sha256"].is_unique
    assert table["position"].tolist() == list(range(24))
    for row in table.itertuples():
        image = images.open_trusted(row.image)
        assert image.size == (row.width, row.height) == (64, 64)
    assert list(table.columns) == [
        "position", "cand_id", "url", "caption", "similarity", "width", "height", "source_sha256", "image", "round",
    ]  # fmt: skip


def test_they_are_the_nearest_captions_to_the_class_prompt(chain):
    table = tables.read(chain.store, chain.regularization, "regularization")
    encoder = Encoder(chain.profile.retrieval_encoder, "cpu")
    parts = sorted((chain.store.path(chain.index) / "metadata").glob("*.parquet"))
    everything = pd.concat(map(pd.read_parquet, parts))["caption"].tolist()
    similarity = encoder.texts(everything) @ encoder.texts(["photo of a cat"])[0]
    assert table["similarity"].tolist() == pytest.approx(np.sort(similarity)[::-1][:24], abs=2e-4)
    assert table["caption"][:12].str.contains("cat").all()


def test_every_candidate_is_accounted_for(chain):
    table = tables.read(chain.store, chain.regularization, "candidates")
    assert len(table) == 60
    assert table["rank"].tolist() == list(range(60))
    assert set(table["prompt"]) == {"photo of a cat"}
    assert table["similarity"].is_monotonic_decreasing
    kept = tables.read(chain.store, chain.regularization, "regularization")["cand_id"]
    assert (table.set_index("cand_id")["drop_reason"][kept] == "").all()
    assert {"source", "item_id", "url", "caption", "dup_group", "drop_reason"} <= set(table.columns)


def test_asked_again_nothing_is_read(chain):
    def progress(done: int, total: int, note: str = "") -> None:
        raise AssertionError("an index or a search ran again")

    index = build_index(chain.profile, chain.index_config, store=chain.store, progress=progress)
    assert index == chain.index
    again = retrieve(chain.concept, index, chain.profile, chain.retrieve_config, store=chain.store, progress=progress)
    assert again == chain.regularization


def test_an_index_is_the_same_on_every_run_and_another_for_another_seed(openmoji, store, tmp_path: Path):
    from customdiff_core.artifacts import Store

    one = build_index(openmoji, IndexConfig(scenes=20), store=store)
    assert build_index(openmoji, IndexConfig(scenes=20), store=Store(tmp_path / "other")).sha256 == one.sha256
    assert build_index(openmoji, IndexConfig(scenes=20, seed=1), store=store).sha256 != one.sha256


def test_more_than_the_index_holds(chain):
    with pytest.raises(TooFewImagesError) as error:
        retrieve(chain.concept, chain.index, chain.profile, RetrieveConfig(count=1201), store=chain.store)
    found, total = (int(one) for one in re.findall(r"found (\d+) of (\d+) candidates", str(error.value))[0])
    assert total == 1200
    assert found > 1000
    assert isinstance(error.value.page, Account)
    assert error.value.page.funnel()["kept"] == found


def test_too_few_are_near_enough(chain):
    config = RetrieveConfig(count=24, candidates=60, min_similarity=0.9999)
    with pytest.raises(
        TooFewImagesError,
        match=r"images for 'photo of a cat': found \d+ of 60 candidates \(\d+ similarity below 0\.9999.*\), need 24; lower",
    ):
        retrieve(chain.concept, chain.index, chain.profile, config, store=chain.store)


def test_the_search_goes_deeper_until_there_are_enough(chain):
    config = RetrieveConfig(
        count=24, candidates=24, near_hash=24, near_similarity=-1
    )  # most are "duplicates" of another
    made = retrieve(chain.concept, chain.index, chain.profile, config, store=chain.store)
    table = tables.read(chain.store, made, "candidates")
    assert len(table) > 24
    assert (table["drop_reason"] == "").sum() == 24
    assert (table["drop_reason"] == "same picture, nearly, as a better hit").sum() > 0


def test_several_prompts_share_one_pass_and_give_what_each_gives_alone(
    chain, openmoji, cat, store, tmp_path, monkeypatch
):
    from customdiff_core.artifacts import Store
    from customdiff_core.retrieval import candidates

    opened: list[object] = []
    real = candidates.open_source
    monkeypatch.setattr(candidates, "open_source", lambda *args: opened.append(args) or real(*args))
    dog = concepts.load("dog")
    profile = profiles.get("openmoji", index=chain.store.path(chain.index))
    config = RetrieveConfig(count=20, candidates=60)
    together = retrieve_all([cat, dog], None, profile, config, store=store)
    assert len(opened) == 1
    alone = [retrieve(one, None, profile, config, store=Store(tmp_path / "alone")) for one in (cat, dog)]
    assert [one.sha256 for one in together] == [one.sha256 for one in alone]
    assert [one.rows for one in together] == [20, 20]


def test_nothing_but_the_artifact_is_left(chain):
    folder = chain.store.path(chain.regularization)
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "regularization.parquet", "candidates.parquet", "attempts.parquet",
    }  # fmt: skip
    assert not (chain.store.root / "checkpoints" / "regularization" / chain.regularization.key).exists()


@pytest.fixture
def folder(openmoji, tmp_path: Path) -> Path:
    """Somebody's own index: pictures of any shape, of which two are the same."""
    import faiss

    words = ["photo of a cat", "a cat", "a cat face", "a dog", "a rocket"]
    vectors = Encoder(openmoji.retrieval_encoder, "cpu").texts(words)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "text.index"))
    (tmp_path / "metadata").mkdir()
    paths = [f"{number}.jpg" for number in range(5)]
    pd.DataFrame({"caption": words, "image_path": paths}).to_parquet(tmp_path / "metadata" / "metadata_0000.parquet")
    for number in range(5):
        Image.new("L", (100 + number, 60), 20 * max(1, number)).save(tmp_path / paths[number])
    (tmp_path / "1.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    return tmp_path


def test_a_folder_of_ones_own_is_searched_and_copies_are_dropped(folder: Path, cat, store):
    profile = profiles.get("openmoji", index=folder)
    made = retrieve(cat, None, profile, RetrieveConfig(count=3, candidates=5), store=store)
    table = tables.read(store, made, "regularization")
    assert table["caption"][0] == "photo of a cat"
    assert len(table) == 3
    dropped = tables.read(store, made, "candidates").set_index("caption")["drop_reason"]
    assert dropped["a cat"] == "same image as a better hit"
    assert (table["height"][0], table["width"][0]) == (60, 100)
    assert images.open_trusted(table["image"][0]).mode == "RGB"


def test_small_pictures_of_a_folder_are_dropped_and_a_larger_one_is_what_is_missing(folder: Path, cat, store):
    Image.new("L", (90, 40), 30).save(folder / "2.jpg")
    profile = profiles.get("openmoji", index=folder)
    made = retrieve(cat, None, profile, RetrieveConfig(count=3, candidates=5, min_side=50), store=store)
    dropped = tables.read(store, made, "candidates").set_index("caption")["drop_reason"]
    assert dropped["a cat face"] == "smaller than 50 pixels"
    funnel = account(store, made).funnel()
    assert (funnel["alive"], funnel["valid"], funnel["kept"]) == (5, 3, 3)
    with pytest.raises(
        TooFewImagesError, match=r"smaller than 64 pixels.*; lower retrieve\.min_side, or use an index of"
    ):
        retrieve(cat, None, profile, RetrieveConfig(count=3, candidates=5, min_side=64), store=store)
    with pytest.raises(ConfigError, match=r"retrieve\.min_side: found 65, need at most 64, .*; lower it"):
        retrieve(cat, None, profile, RetrieveConfig(min_side=65), store=store)


def test_a_broken_picture_in_a_folder_is_dropped_by_name_and_another_taken(folder: Path, cat, store):
    (folder / "0.jpg").write_text("not a picture")
    (folder / "1.jpg").unlink()
    profile = profiles.get("openmoji", index=folder)
    made = retrieve(cat, None, profile, RetrieveConfig(count=3, candidates=5), store=store)
    dropped = tables.read(store, made, "candidates").set_index("caption")["drop_reason"]
    assert (dropped["photo of a cat"], dropped["a cat"]) == ("link not_image", "link not_image")
    attempts = tables.read(store, made, "attempts").set_index("cand_id")["error"]
    assert attempts[0].startswith("picture: found no picture, need one of PNG")
    assert "1.jpg: found No such file" in attempts[1]


def test_what_an_index_of_images_finds_is_ranked_by_its_captions(openmoji, cat, store, tmp_path: Path):
    """Its vectors, here of nothing at all, only find: a threshold means the same for every source."""
    words = ["a rocket", "photo of a dog", "photo of a cat", "a cat", "a red car", "a cat face"]
    vectors = np.random.default_rng(0).standard_normal((len(words), 192)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    paths = [f"{number}.png" for number in range(len(words))]
    for path in paths:
        Image.effect_noise((64, 64), 80).save(tmp_path / path)
    write_index(tmp_path, vectors, pd.DataFrame({"caption": words, "image_path": paths}), kind="image")
    profile, config = profiles.get("openmoji", index=tmp_path), RetrieveConfig(count=3, candidates=len(words))
    made = retrieve(cat, None, profile, config, store=store)
    encoder = Encoder(openmoji.retrieval_encoder, "cpu")
    cosines = encoder.texts(words) @ encoder.texts([cat.class_prompt])[0]
    order = np.argsort(-cosines)
    table = tables.read(store, made, "candidates")
    assert table["caption"].tolist() == [words[place] for place in order]
    assert table["similarity"].tolist() == pytest.approx(cosines[order].tolist(), abs=2e-4)
    assert tables.read(store, made, "regularization")["caption"].tolist() == table["caption"].tolist()[:3]


def test_a_path_that_leaves_the_folder_is_dropped(folder: Path, cat, store, tmp_path: Path):
    table = pd.read_parquet(folder / "metadata" / "metadata_0000.parquet")
    table.loc[0, "image_path"] = "../../../../../../../../etc/hosts"
    table.to_parquet(folder / "metadata" / "metadata_0000.parquet")
    profile = profiles.get("openmoji", index=folder)
    made = retrieve(cat, None, profile, RetrieveConfig(count=3, candidates=5), store=store)
    errors = tables.read(store, made, "attempts")["error"]
    assert errors.str.contains("found a link to /etc/hosts, need a picture inside").sum() == 1


# From the web


@pytest.fixture
def web_index(openmoji, tmp_path: Path):
    """An index of 90 links, of which every fifth is dead and one is listed twice."""
    from deployments.web import serving

    def build(base: str, kinds: tuple[str, ...] = ("ok", "ok", "ok", "ok", "dead"), **more: list[str]) -> Path:
        words = [f"photo of a cat number {number}" for number in range(90)]
        vectors = Encoder(openmoji.retrieval_encoder, "cpu").texts(words)
        urls = [f"{base}/{kinds[number % len(kinds)]}/{number}.jpg" for number in range(90)]
        urls[3] = urls[0]
        return write_index(tmp_path, vectors, pd.DataFrame({"caption": words, "url": urls, **more}))

    with serving() as (base, web):
        yield build, base, web


QUICK = FetchConfig(deadline_s=60, silence_s=20, retries=0)  # of links that answer at once or never


@pytest.mark.usefixtures("open_loopback")
def test_links_are_fetched_in_rounds_and_ranked_by_similarity(web_index, cat, store):
    build, base, web = web_index
    profile = profiles.get("openmoji", index=build(base))
    config = RetrieveConfig(count=30, candidates=40, fetch=QUICK.model_copy(update={"survival": 1.0}))
    made = retrieve(cat, None, profile, config, store=store)
    table = tables.read(store, made, "regularization")
    candidates = tables.read(store, made, "candidates")
    attempts = tables.read(store, made, "attempts")
    assert len(table) == 30
    assert table["similarity"].is_monotonic_decreasing
    assert table["round"].max() >= 1  # the first round expected all links to live
    alive = candidates[
        ~candidates["url"].str.contains("/dead/") & (candidates["drop_reason"] != "same address as a better hit")
    ]
    assert table["cand_id"].tolist() == alive["cand_id"].tolist()[:30]
    assert set(attempts["status"]) == {"ok", "dead"}
    assert set(attempts["host"]) == {"127.0.0.1"}
    assert max(web.asked.values()) == 1


@pytest.mark.usefixtures("open_loopback")
@pytest.mark.parametrize("source", ["local", "backend", "backend without its folder"])
def test_a_webdatasets_key_in_image_path_is_no_file_and_the_url_is_taken(
    web_index, cat, store, tmp_path: Path, source: str
):
    """clip-retrieval writes a sample's key there; a row whose file is there is read from the folder."""
    from deployments.backend import running

    build, base, _ = web_index
    keys = [f"{number:09d}" for number in range(90)]
    folder = build(base, ("ok",), image_path=keys)
    for number in range(0, 90, 2):
        Image.new("RGB", (64, 64), (number, 80, 120)).save(folder / keys[number], "PNG")
    config = RetrieveConfig(count=12, candidates=40, fetch=QUICK, near_hash=None)
    with ExitStack() as stack:
        corpus: dict[str, Any] = {"index": folder}
        if source != "local":
            address, _ = stack.enter_context(running(folder, tmp_path / "back"))
            corpus = {"backend": address, "index": folder if source == "backend" else None}
        made = retrieve(cat, None, profiles.get("openmoji", **corpus), config, store=store)
    assert made.rows == 12
    candidates = tables.read(store, made, "candidates").set_index("cand_id")
    attempts = tables.read(store, made, "attempts")
    assert set(attempts["status"]) == {"ok"}
    numbers = candidates["image_path"][attempts["cand_id"]].astype(int).to_numpy()
    from_file = (numbers % 2 == 0) & (source != "backend without its folder")
    assert (attempts["host"] == "").tolist() == from_file.tolist()
    assert 0 < (numbers % 2).sum() < len(numbers)


@pytest.mark.usefixtures("open_loopback")
def test_links_that_the_store_has_already_are_not_fetched_again(web_index, cat, store):
    build, base, web = web_index
    profile = profiles.get("openmoji", index=build(base))
    first = retrieve(cat, None, profile, RetrieveConfig(count=20, candidates=30, fetch=QUICK), store=store)
    before = dict(web.asked)
    again = retrieve(cat, None, profile, RetrieveConfig(count=25, candidates=30, fetch=QUICK), store=store)
    reused = {url.removeprefix(base) for url in tables.read(store, first, "regularization")["url"]}
    assert {path: count for path, count in web.asked.items() if path in reused} == {
        path: before[path] for path in reused
    }
    one, other = (tables.read(store, made, "regularization") for made in (first, again))
    assert other["source_sha256"].tolist()[:20] == one["source_sha256"].tolist()
    funnel = account(store, again).funnel()
    assert funnel["kept"] == 25  # those from before are in the account too
    assert funnel["tried"] >= funnel["alive"] >= funnel["valid"] >= 25


@pytest.mark.usefixtures("open_loopback")
def test_what_was_fetched_under_laxer_rules_is_fetched_again(web_index, cat, store):
    build, base, web = web_index
    profile = profiles.get("openmoji", index=build(base))
    lax = QUICK.model_copy(update={"opt_out": False})
    first = retrieve(cat, None, profile, RetrieveConfig(count=20, candidates=30, fetch=lax), store=store)
    before = dict(web.asked)
    strict = retrieve(cat, None, profile, RetrieveConfig(count=20, candidates=30, fetch=QUICK), store=store)
    paths = [
        {url.removeprefix(base) for url in tables.read(store, one, "regularization")["url"]} for one in (first, strict)
    ]
    assert paths[0] & paths[1]
    assert all(web.asked[path] > before[path] for path in paths[0] & paths[1])


@pytest.mark.usefixtures("open_loopback")
def test_a_link_that_was_busy_before_takes_its_rank_once_it_answers(web_index, cat, store, tmp_path: Path):
    """The same links that answer give the same images, whatever the store had: there are enough, and better ones untried."""
    from customdiff_core.artifacts import Store

    build, base, _ = web_index
    profile = profiles.get("openmoji", index=build(base, ("ok", "busy", "ok")))
    before = retrieve(cat, None, profile, RetrieveConfig(count=20, candidates=70, fetch=QUICK), store=store)
    assert not tables.read(store, before, "regularization")["url"].str.contains("/busy/").any()
    config = RetrieveConfig(count=20, candidates=71, fetch=QUICK)
    again = retrieve(cat, None, profile, config, store=store)
    alone = retrieve(cat, None, profile, config, store=Store(tmp_path / "alone"))
    one, other = (
        tables.read(store, again, "regularization"),
        tables.read(Store(tmp_path / "alone"), alone, "regularization"),
    )
    assert one["url"].str.contains("/busy/").any()
    assert one["url"].tolist() == other["url"].tolist()
    assert one["source_sha256"].tolist() == other["source_sha256"].tolist()


@pytest.mark.usefixtures("open_loopback")
def test_pictures_that_were_kept_at_another_size_are_fetched_again(web_index, cat, store):
    build, base, web = web_index
    profile = profiles.get("openmoji", index=build(base))
    larger = profile.model_copy(update={"augment": profile.augment.model_copy(update={"resolution": 128})})
    config = RetrieveConfig(count=20, candidates=30, fetch=QUICK)
    small, large = (retrieve(cat, None, one, config, store=store) for one in (profile, larger))
    tables_of = [tables.read(store, one, "regularization") for one in (small, large)]
    assert [set(table["height"]) for table in tables_of] == [{64}, {128}]
    assert tables_of[0]["url"].tolist() == tables_of[1]["url"].tolist()
    assert {web.asked[url.removeprefix(base)] for url in tables_of[1]["url"]} == {2}


@pytest.mark.usefixtures("open_loopback")
def test_a_broken_run_goes_on_from_what_it_fetched(web_index, cat, store, monkeypatch: pytest.MonkeyPatch):
    """The source fails while the search goes deeper, as when a backend is killed."""
    from customdiff_core.retrieval import candidates

    build, base, web = web_index
    profile = profiles.get("openmoji", index=build(base, ("ok", "dead")))
    config = RetrieveConfig(count=30, candidates=45, fetch=QUICK.model_copy(update={"survival": 0.95}))
    real = candidates.search

    def killed(source, vector, count):
        if count > 45:
            raise RetrievalError("backend: found no answer, need one; start it")
        return real(source, vector, count)

    monkeypatch.setattr(candidates, "search", killed)
    with pytest.raises(RetrievalError, match="found no answer"):
        retrieve(cat, None, profile, config, store=store)
    monkeypatch.setattr(candidates, "search", real)
    fetched = {path for path in web.asked if path.startswith("/ok/")}
    assert len(fetched) >= 10
    made = retrieve(cat, None, profile, config, store=store)
    assert made.rows == 30
    assert {web.asked[path] for path in fetched} == {1}


@pytest.mark.usefixtures("open_loopback")
def test_the_ablations_alternatives_have_the_same_columns(chain, cat, store):
    real = tables.read(chain.store, chain.regularization, "regularization")
    drawn = retrieve(cat, None, chain.profile, RetrieveConfig(regularization="generated", count=3), store=store)
    assert drawn.rows == 3
    table = tables.read(store, drawn, "regularization")
    assert list(table.columns) == list(real.columns)
    assert set(table["caption"]) == {"photo of a cat"}
    assert table["source_sha256"].is_unique
    again = retrieve(
        cat, None, chain.profile, RetrieveConfig(regularization="generated", count=3, candidates=9), store=store
    )
    assert again == drawn  # what only searching needs is not in its name
    with pytest.raises(ConfigError, match="train without one instead"):
        retrieve(cat, None, chain.profile, RetrieveConfig(regularization="none"), store=store)


@pytest.mark.usefixtures("open_loopback")
def test_a_forgotten_picture_is_replaced_and_its_link_never_asked_again(web_index, cat, store):
    from customdiff_core.retrieval.forget import forget

    build, base, web = web_index
    profile = profiles.get("openmoji", index=build(base))
    config = RetrieveConfig(count=20, candidates=30, fetch=QUICK)
    first = retrieve(cat, None, profile, config, store=store)
    url = tables.read(store, first, "regularization")["url"][4]
    asked = web.asked[url.removeprefix(base)]
    forget(url, store)
    again = retrieve(cat, None, profile, config, store=store)
    assert again.rows == 20
    assert url not in set(tables.read(store, again, "regularization")["url"])
    assert web.asked[url.removeprefix(base)] == asked
    reasons = tables.read(store, again, "candidates").set_index("url")["drop_reason"]
    assert reasons[url] == "forgotten on request"


@pytest.mark.usefixtures("open_loopback")
@pytest.mark.parametrize("when", ["take", "sealed"])
def test_a_removal_asked_for_while_a_set_is_made_is_heard(web_index, cat, store, monkeypatch, when: str):
    """Whether its sweep finds the half-finished work, or comes when all was looked at: no set is left with the picture."""
    from customdiff_core.artifacts import Store
    from customdiff_core.retrieval import retrieve as module
    from customdiff_core.retrieval.forget import forget

    build, base, web = web_index
    profile = profiles.get("openmoji", index=build(base))
    config = RetrieveConfig(count=20, candidates=30, fetch=QUICK)
    url = f"{base}/ok/0.jpg"
    where, name = {"take": (module, "take"), "sealed": (Store, "_seal")}[when]
    real = getattr(where, name)

    def meanwhile(*arguments):
        forget(url, store)
        return real(*arguments)

    monkeypatch.setattr(where, name, meanwhile)
    with pytest.raises(
        RetrievalError, match=r"found that a picture's removal was asked for meanwhile, .*; run this again$"
    ):
        retrieve(cat, None, profile, config, store=store)
    assert not list(store.manifests("regularization"))
    monkeypatch.setattr(where, name, real)
    made = retrieve(cat, None, profile, config, store=store)
    assert url not in set(tables.read(store, made, "regularization")["url"])
    assert web.asked[url.removeprefix(base)] == 1


def test_forgotten_links_leave_pictures_beside_an_index_alone(chain, cat, tmp_path):
    """Which have no link: an older version could be told to forget the empty one."""
    from customdiff_core.artifacts import Store
    from customdiff_core.retrieval.known import remember_forgotten

    store = Store(tmp_path / "other")
    remember_forgotten(store, url_digest(""))
    made = retrieve(cat, chain.index, chain.profile, chain.retrieve_config, store=Store(chain.store.root))
    assert made == chain.regularization
    index = build_index(chain.profile, chain.index_config, store=store)
    assert retrieve(cat, index, chain.profile, chain.retrieve_config, store=store).sha256 == made.sha256


def test_a_shelf_knows_a_picture_by_what_its_row_says(cat, store, tmp_path, openmoji):
    """An index built anew numbers its rows anew: what a broken-off run read is not the picture of another row."""
    from customdiff_core.retrieval.candidates import Gathered, Session
    from customdiff_core.retrieval.fetch import Shelf

    session = Session(None, openmoji, RetrieveConfig(), store, None, None)
    session.__dict__["source"] = None
    gathered = Gathered(session, Shelf(tmp_path / "shelf"))
    row = {"item_id": 5, "url": "", "image_path": "", "caption": "a cat", "image": b"one"}
    digests = {gathered._link(row | change).digest for change in ({}, {"image": b"other"})}
    assert len(digests) == 2
    assert gathered._link(row).digest == gathered._link(row | {"caption": "said otherwise"}).digest
