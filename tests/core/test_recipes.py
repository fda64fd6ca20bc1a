import shutil
from pathlib import Path

import pytest

from customdiff_core import recipes
from customdiff_core.config import IndexConfig
from customdiff_core.errors import StoreError
from customdiff_core.recipes import Recipe, digest_of, fingerprint, settings

RECIPE = Recipe(
    kind="delta",
    inputs={"model": "m", "concept": "c"},
    config={"steps": 10, "rate": 0.1},
    code="code",
    versions={"torch": "1"},
    labels={"concept": "cat"},
    extendable=("steps",),
)


def changed(**update: object) -> Recipe:
    return RECIPE.model_copy(update=update)


def test_a_key_is_32_hexadecimal_digits_and_the_same_on_every_machine():
    assert RECIPE.key == "330b729fc9d1cde4d116d2eed0753b58"


@pytest.mark.parametrize(
    "same",
    [
        changed(inputs={"concept": "c", "model": "m"}),
        changed(config={"rate": 0.1, "steps": 10}),
        changed(labels={"concept": "dog", "profile": "x"}),
        changed(extendable=()),
    ],
)
def test_order_and_labels_are_not_in_the_key(same: Recipe):
    assert same.key == RECIPE.key


@pytest.mark.parametrize(
    "other",
    [
        changed(kind="samples"),
        changed(inputs={"model": "m", "concept": "d"}),
        changed(inputs={"model": "c", "concept": "m"}),
        changed(config={"steps": 11, "rate": 0.1}),
        changed(config={"steps": 10, "rate": 0.1, "new": None}),
        changed(code="other"),
        changed(versions={"torch": "2"}),
    ],
)
def test_all_else_is_in_the_key(other: Recipe):
    assert other.key != RECIPE.key


def test_the_base_key_ignores_the_extendable_settings_alone():
    longer = changed(config={"steps": 500, "rate": 0.1})
    assert longer.key != RECIPE.key
    assert longer.base_key == RECIPE.base_key != RECIPE.key
    assert changed(config={"steps": 10, "rate": 0.2}).base_key != RECIPE.base_key


def test_a_config_model_is_digested_as_its_values():
    assert (
        digest_of(IndexConfig(scenes=3))
        == digest_of(settings(IndexConfig(scenes=3)))
        == digest_of({"seed": 0, "scenes": 3})
    )


def test_a_value_that_is_no_json_is_refused():
    with pytest.raises(TypeError, match=r"^recipe value: found \w*Path, need JSON or a config model$"):
        digest_of({"folder": Path("/x")})


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A copy of the core's sources, which a test may change."""
    copy = tmp_path / "customdiff_core"
    shutil.copytree(recipes.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(recipes, "PACKAGE", copy)
    monkeypatch.setattr(recipes, "BEGAN", recipes._core())
    recipes._reach.cache_clear()
    yield copy
    recipes._reach.cache_clear()


def edited(path: Path) -> str:
    """Change a module and return the fingerprint of augmentation in a new process."""
    path.write_text(path.read_text() + "\nCHANGED = True\n")
    recipes.BEGAN = recipes._core()  # undone by the fixture's monkeypatch
    return fingerprint("customdiff_core.augmentation")


@pytest.mark.parametrize("module", ["config.py", "errors.py", "profiles.py", "stages.py", "artifacts.py"])
def test_a_fingerprint_leaves_out_what_only_names_and_stores_results(package: Path, module: str):
    before = fingerprint("customdiff_core.augmentation")
    assert edited(package / module) == before


@pytest.mark.parametrize(
    "module", ["augmentation.py", "images.py", "latents.py", "finetuning/components.py", "weights.py"]
)
def test_a_fingerprint_follows_imports_those_inside_functions_too(package: Path, module: str):
    before = fingerprint("customdiff_core.augmentation")
    assert edited(package / module) != before


@pytest.mark.parametrize("module", ["evaluation/kid.py", "sampling.py", "finetuning/loop.py", "retrieval/index.py"])
def test_a_module_that_is_not_reached_does_not_change_a_fingerprint(package: Path, module: str):
    before = fingerprint("customdiff_core.augmentation")
    assert edited(package / module) == before


def test_code_that_changed_under_a_running_process_names_no_result(package: Path):
    path = package / "latents.py"
    text = path.read_text()
    path.write_text(text + "\nCHANGED = True\n")
    with pytest.raises(
        StoreError,
        match=r"found customdiff_core\.latents changed since this process began, need .* anew: what is made already",
    ):
        fingerprint("customdiff_core.augmentation")
    fingerprint("customdiff_core.evaluation.kid")  # which does not reach it
    path.write_text(text)
    fingerprint("customdiff_core.augmentation")
    path.unlink()
    with pytest.raises(StoreError, match=r"found customdiff_core\.latents changed since"):
        fingerprint("customdiff_core.augmentation")
    recipes._reach.cache_clear()
    (package / "images.py").write_text("half a line (")  # being saved: not read for what it imports
    with pytest.raises(StoreError, match=r"found customdiff_core\.images changed since"):
        fingerprint("customdiff_core.images")


def test_a_dangling_link_among_the_sources_is_no_source(package: Path):
    (package / ".#latents.py").symlink_to(package / "nowhere")
    assert recipes._core()[package / ".#latents.py"] == ""


def test_a_fingerprint_is_of_the_text_and_not_of_the_place(package: Path):
    copied = fingerprint("customdiff_core.augmentation")
    recipes._reach.cache_clear()
    recipes.PACKAGE = Path(recipes.__file__).parent  # undone by the fixture's monkeypatch
    recipes.BEGAN = recipes._core()
    assert fingerprint("customdiff_core.augmentation") == copied


def test_versions_are_those_installed():
    import torch

    assert recipes.versions("torch") == {"torch": torch.__version__.split("+")[0]} or recipes.versions("torch") == {
        "torch": torch.__version__
    }
