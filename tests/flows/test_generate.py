"""What the flow `generate` makes of prompts; nothing is drawn."""

from pathlib import Path
from typing import Any

import pytest

from customdiff_core.artifacts import Artifact, Store
from customdiff_core.errors import ConfigError
from customdiff_core.lineage import Taught
from flows.generate import generate

from ..handmade import knowing, samples

CAT = Taught(name="cat", category="cat", modifier_token="<teal-cat-2>", initializer_token="ktn")
DOG = Taught(name="dog", category="dog", modifier_token="<purple-dog>", initializer_token="pll")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that the flow opens."""
    monkeypatch.setenv("CUSTOMDIFF_STORE", str(tmp_path / "store"))
    return Store(tmp_path / "store")


@pytest.fixture
def drawn(here: Store, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The prompts that would be drawn."""
    found: list[tuple[str, ...]] = []

    def task(texts: tuple[str, ...], *rest: Any) -> Artifact:
        found.append(texts)
        return samples(here, texts, "drawn")

    monkeypatch.setattr("tasks.generate.generate", task)
    monkeypatch.setattr("tasks.publish.create_markdown_artifact", lambda markdown, key: None)
    return found


def test_a_merge_draws_several_concepts_in_one_prompt(here: Store, drawn: list[tuple[str, ...]]) -> None:
    generate.fn("cat", ["a {0} and a {1}", "a crying {}", "a {} and a {0}"], delta=knowing(here, DOG, CAT).key)
    assert drawn == [
        (
            "a <purple-dog> dog and a <teal-cat-2> cat",
            "a crying <teal-cat-2> cat",  # by the token that it has in this delta
            "a <teal-cat-2> cat and a <purple-dog> dog",
        )
    ]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a cat", "prompts: found 0 placeholders in 'a cat', need exactly one {}"),
        (
            "a {0} and a {2}",
            "prompts: found {2} in 'a {0} and a {2}', need {} or what the delta knows: {0} <purple-dog> dog, "
            "{1} <teal-cat-2> cat; correct it",
        ),
    ],
)
def test_a_prompt_that_names_nobody_is_refused(
    here: Store, drawn: list[tuple[str, ...]], prompt: str, words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        generate.fn("cat", [prompt], delta=knowing(here, DOG, CAT).key)
    assert words in str(error.value)
    assert not drawn
