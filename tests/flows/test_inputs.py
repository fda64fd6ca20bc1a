"""Which artifact a stage that runs alone takes where no key is given."""

from pathlib import Path

import pytest

from customdiff_core import concepts, profiles
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.errors import ConfigError, StoreError
from customdiff_core.recipes import Recipe
from customdiff_core.weights import model_digest
from flows.inputs import chosen, taken, training_set_of

OPENMOJI = profiles.get("openmoji")
MODEL = model_digest(OPENMOJI.model)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that a flow opens."""
    monkeypatch.setenv("CUSTOMDIFF_STORE", str(tmp_path / "store"))
    return Store(tmp_path / "store")


def made(store: Store, kind: str, inputs: dict[str, str], concept: str = "cat") -> Artifact:
    labels = {"concept": concept, "profile": "openmoji"}
    config = {"random_resize": OPENMOJI.views("custom-diffusion").random_resize}
    recipe = Recipe(kind=kind, inputs=inputs, config=config, code="", versions={}, labels=labels)
    return store.make(recipe, lambda folder: (folder / "file").write_text("x") or 1)


@pytest.mark.parametrize("kind", ["delta", "metrics"])
def test_the_newest_is_the_concepts_own_on_this_base_model(here: Store, kind: str) -> None:
    with pytest.raises(StoreError, match=f"{kind}: found none for concept cat, profile openmoji"):
        chosen(kind, None, "cat", OPENMOJI)
    older = made(here, kind, {"model": MODEL})
    other = made(here, kind, {"model": "of before"})
    made(here, kind, {"model": MODEL}, "cat (benchmark)")
    assert chosen(kind, None, "cat", OPENMOJI) == older
    assert chosen(kind, other.key, "cat", OPENMOJI) == other


def test_a_training_set_of_another_base_model_is_not_taken(here: Store) -> None:
    cat = concepts.load("cat")
    made(here, "training_set", {"concept": cat.digest, "model": "of before"})
    with pytest.raises(StoreError, match=r"training_set: found none of <teal-cat> cat .* run augment/stage"):
        training_set_of(cat, None, "custom-diffusion", OPENMOJI)
    newer = made(here, "training_set", {"concept": cat.digest, "model": MODEL})
    assert training_set_of(cat, None, "custom-diffusion", OPENMOJI) == newer


@pytest.mark.usefixtures("here")
def test_a_name_that_is_neither_concept_nor_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"delta: found 'catt', need a concept .*; did you mean 'cat'\?"):
        taken("catt", OPENMOJI)
