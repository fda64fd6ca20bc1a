from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from customdiff_core import images, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.errors import RetrievalError, StoreError
from customdiff_core.evaluation import embeddings
from customdiff_core.evaluation.embeddings import embedded
from customdiff_core.recipes import Recipe
from customdiff_core.retrieval.fetch import url_digest
from customdiff_core.retrieval.forget import forget, plan
from customdiff_core.retrieval.known import forgotten, remember_forgotten

URL, OTHER = "https://a.example/1.jpg", "https://a.example/2.jpg"


def make(store: Store, kind: str, name: str, *urls: str, **inputs: Artifact) -> Artifact:
    def produce(folder: Path) -> int:
        frame = pd.DataFrame({"url": list(urls), "name": [name] * len(urls)})
        return tables.write(folder / f"{kind}.parquet", frame)

    digests = {kind: artifact.sha256 for kind, artifact in inputs.items()}
    return store.make(Recipe(kind=kind, inputs=digests, config={"name": name}, code="", versions={}), produce)


@pytest.fixture
def chain(store: Store) -> dict[str, Artifact]:
    """A set with the picture and what was trained on it, beside one without."""
    made = {
        "with": make(store, "regularization", "with", URL, OTHER),
        "without": make(store, "regularization", "without", OTHER),
    }
    for name in list(made):
        training_set = make(store, "training_set", name, "x", regularization=made[name])
        delta = make(store, "delta", name, "x", "x", training_set=training_set)
        made |= {f"training {name}": training_set, f"delta {name}": delta}
        made[f"metrics {name}"] = make(store, "metrics", name, "x", "x", "x", delta=delta)
    return made


def test_a_picture_goes_with_everything_made_from_it_and_nothing_else(store: Store, chain: dict[str, Artifact]):
    removed = forget(URL, store)
    assert {one.key for one in removed.artifacts} == {
        one.key for name, one in chain.items() if not name.endswith("without")
    }
    for name, artifact in chain.items():
        assert store.path(artifact).exists() == name.endswith("without")
    assert removed.producers == ("test",)


def test_the_vectors_of_what_was_drawn_from_it_go_too(store: Store, chain: dict[str, Artifact]):
    encoder = Recipe(kind="embeddings", inputs={}, config={}, code="", versions={})
    drawn = {name: _samples(store, name, chain[f"delta {name}"]) for name in ("with", "without")}
    names = {name: images.digest(name.encode()) for name in drawn}
    embedded(list(names.values()), encoder, lambda places: np.full((len(places), 2), 7.25, np.float32), store=store)
    removed = forget(URL, store)
    assert drawn["with"] in removed.artifacts
    asked: list[str] = []

    def compute(places: list[int]) -> np.ndarray:
        asked.extend(list(names)[place] for place in places)
        return np.zeros((len(places), 2), np.float32)

    embedded(list(names.values()), encoder, compute, store=store)
    assert asked == ["with"]


def test_a_damaged_file_of_vectors_goes_as_a_whole(store: Store, chain: dict[str, Artifact]):
    path = store.scratch("embeddings", "k") / embeddings.FILE
    path.write_bytes(b"no database" * 200)
    _samples(store, "with", chain["delta with"])
    forget(URL, store)
    assert not path.exists()


def test_a_damaged_table_holds_nothing_up_and_all_vectors_go(store: Store, chain: dict[str, Artifact]):
    path = store.scratch("embeddings", "k") / embeddings.FILE
    embeddings.forget([], store)
    encoder = Recipe(kind="embeddings", inputs={}, config={}, code="", versions={})
    embedded(["x"], encoder, lambda places: np.zeros((1, 2), np.float32), store=store)
    drawn = _samples(store, "with", chain["delta with"])
    (store.path(drawn) / "samples.parquet").write_bytes(b"cut off")
    assert drawn in forget(URL, store).artifacts
    assert not path.exists()
    assert not list(store.root.glob(f"checkpoints/embeddings/*/{embeddings.FILE}"))
    assert not store.path(drawn).exists()


def test_an_empty_link_is_none(store: Store):
    """As an unset variable leaves it: pictures beside an index have no link, and must not be taken for it."""
    kept = make(store, "regularization", "local", "", "")
    for ask in (plan, forget):
        with pytest.raises(RetrievalError, match="found an empty link"):
            ask(" ", store)
    assert store.path(kept).exists()
    assert forgotten(store) == frozenset()


def test_a_training_that_was_broken_off_goes_too(store: Store, chain: dict[str, Artifact]):
    kept, gone = (
        store.scratch("delta", name, {"training_set": chain[f"training {name}"].sha256}) for name in ("without", "with")
    )
    assert gone in plan(URL, store).folders
    forget(URL, store)
    assert kept.exists()
    assert not gone.exists()


def test_what_is_being_made_of_it_is_not_kept(store: Store, chain: dict[str, Artifact]):
    recipe = Recipe(kind="delta", inputs={"t": chain["training with"].sha256}, config={}, code="", versions={})

    def produce(folder: Path) -> int:
        forget(URL, store)
        return tables.write(folder / "delta.parquet", [{"x": 1}])

    with pytest.raises(StoreError, match="found that what it was made from was withdrawn meanwhile"):
        store.make(recipe, produce)
    assert store.find(recipe) is None
    other = recipe.model_copy(update={"inputs": {"t": chain["training without"].sha256}})
    store.make(other, lambda folder: tables.write(folder / "delta.parquet", [{"x": 1}]))


def test_what_was_ended_during_the_sweep_goes_too(store: Store, chain: dict[str, Artifact], monkeypatch):
    """A training may get its place after the sweep looked there, and before its input was withdrawn."""
    late: list[Artifact] = []
    real = Store.withdraw

    def meanwhile(self: Store, artifacts):
        if not late:
            late.append(make(self, "delta", "late", "x", training_set=chain["training with"]))
        real(self, artifacts)

    monkeypatch.setattr(Store, "withdraw", meanwhile)
    removed = forget(URL, store).artifacts
    assert late[0] in removed
    assert not store.path(late[0]).exists()


def test_a_training_that_began_during_the_sweep_leaves_nothing(store: Store, chain: dict[str, Artifact]):
    inputs = {"training_set": chain["training with"].sha256}
    recipe = Recipe(kind="delta", inputs=inputs, config={}, code="", versions={})

    def produce(folder: Path) -> int:
        forget(URL, store)
        store.scratch("delta", recipe.base_key, inputs)
        return tables.write(folder / "delta.parquet", [{"x": 1}])

    with pytest.raises(StoreError, match="withdrawn meanwhile"):
        store.make(recipe, produce)
    assert not store.unfinished({chain["training with"].sha256})
    left = store.scratch("delta", "killed", inputs)  # of one that was killed
    assert left in forget(URL, store).folders
    assert not left.exists()


def test_tables_that_cannot_be_read_hold_nothing_up(store: Store, chain: dict[str, Artifact]):
    folder = store.scratch("regularization", "k") / "img2dataset" / "some"
    folder.mkdir(parents=True)
    (folder / "links.parquet").write_bytes(b"cut off")
    cell = make(store, "cell", "cell")
    (store.path(cell) / "sources.parquet").write_bytes(b"cut off")
    forget(URL, store)
    assert not folder.exists()
    assert not store.path(chain["delta with"]).exists()


def test_what_img2dataset_was_fetching_goes_too(store: Store):
    folder = store.scratch("regularization", "k") / "img2dataset" / "some"
    folder.mkdir(parents=True)
    tables.write(folder / "links.parquet", [{"url": URL, "item_id": 1}])
    forget(URL, store)
    assert not folder.exists()


def test_a_nights_page_goes_and_its_figures_stay(store: Store, chain: dict[str, Artifact]):
    pages: dict[str, Artifact] = {}
    for name in ("with", "without"):
        handles = [{"name": "delta", **chain[f"delta {name}"].model_dump()}]
        recipe = Recipe(kind="cell", inputs={}, config={"name": name}, code="", versions={})
        cell = store.make(recipe, lambda folder, rows=handles: tables.write(folder / "sources.parquet", rows))
        night = make(store, "benchmark", name, "x", cell=cell)
        pages[name] = make(store, "report", name, "x", benchmark=night)
    removed = forget(URL, store).artifacts
    assert pages["with"] in removed
    assert pages["without"] not in removed
    assert {one.kind for one in removed}.isdisjoint({"cell", "benchmark"})


def test_of_wishes_at_a_time_none_is_lost(store: Store):
    digests = [f"{number:064x}" for number in range(24)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda digest: remember_forgotten(store, digest), digests))
    assert forgotten(store) == set(digests)


def _samples(store: Store, name: str, delta: Artifact) -> Artifact:
    recipe = Recipe(kind="samples", inputs={"delta": delta.sha256}, config={"name": name}, code="", versions={})
    return store.make(recipe, lambda folder: tables.write(folder / "samples.parquet", [{"image": name.encode()}]))


def test_a_plan_removes_nothing(store: Store, chain: dict[str, Artifact]):
    assert len(plan(URL, store).artifacts) == 4
    assert all(store.path(artifact).exists() for artifact in chain.values())
    assert forgotten(store) == frozenset()


def test_half_finished_work_goes_too(store: Store, chain: dict[str, Artifact]):
    pictures = store.scratch("regularization", "k") / "pictures"
    pictures.mkdir()
    (pictures / f"{url_digest(URL)}.json").write_text("{}")
    delta = store.manifest(chain["delta with"]).recipe
    checkpoints = store.scratch("delta", delta.base_key)
    forget(URL, store)
    assert not pictures.exists()
    assert not checkpoints.exists()


def test_only_a_digest_is_remembered(store: Store, chain: dict[str, Artifact]):
    forget(URL, store)
    assert forgotten(store) == {url_digest(URL)}
    assert URL not in (store.root / "forgotten.json").read_text()
    forget(OTHER, store)
    assert forgotten(store) == {url_digest(URL), url_digest(OTHER)}
    assert forget(URL, store).artifacts == ()  # again is no error


def test_a_link_that_nobody_knows(store: Store, chain: dict[str, Artifact]):
    with pytest.raises(RetrievalError) as error:
        forget("https://b.example/3.jpg", store)
    assert str(error.value) == (
        f"forget: found nothing of https://b.example/3.jpg in {store.root}, need the link as regularization.parquet has it; "
        "copy it from there"
    )
    assert forgotten(store) == frozenset()
