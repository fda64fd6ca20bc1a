"""True drawings in the prompts' scenes: what no method can surpass."""

import numpy as np
import pytest

from customdiff_core import concepts, images
from customdiff_core.artifacts import Store
from customdiff_core.errors import WorldError
from customdiff_core.world.colours import COLOURS
from deployments import ceiling


@pytest.mark.parametrize("name", sorted(ceiling.makers().SUBJECTS))
def test_every_prompt_of_every_concept_has_its_scene(name: str) -> None:
    concept = concepts.load(name)
    drawn = [np.asarray(ceiling.draw(concept, prompt, 0)) for prompt in concept.prompts]
    assert {one.shape for one in drawn} == {(64, 64, 3)}
    assert len({one.tobytes() for one in drawn}) == len(concept.prompts)


def test_a_scene_shows_what_its_prompt_says() -> None:
    cat = concepts.load("cat")
    plain = np.asarray(ceiling.draw(cat, "a {} on a blue background", 0)).astype(int)
    assert np.abs(plain[0, 0] - COLOURS["blue"]).max() <= 14
    assert near(plain[16:48, 16:48], (0x3F, 0xB8, 0xAF)) > 0.2  # teal, and nothing of OpenMoji's orange
    assert near(plain, (0xF4, 0xAA, 0x41)) == 0
    pair = np.asarray(ceiling.draw(cat, "a {} and a red apple on a white background", 0)).astype(int)
    assert near(pair[:, 40:], COLOURS["red"], 40) > 0.1 > near(pair[:, :24], COLOURS["red"], 40)
    other = np.asarray(ceiling.draw(cat, "a red apple and a {}", 0)).astype(int)
    assert near(other[:, :24], COLOURS["red"], 40) > 0.1
    far, close = (
        np.asarray(ceiling.draw(cat, f"{size} photo of a {{}}", 0)).astype(int) for size in ("far away", "close up")
    )
    assert near(far, (0x3F, 0xB8, 0xAF)) < 0.1 < near(close, (0x3F, 0xB8, 0xAF))


def near(pixels: np.ndarray, colour: tuple[int, int, int], reach: int = 24) -> float:
    """Share of the pixels that have about this colour."""
    return float((np.abs(pixels - colour).max(axis=-1) <= reach).mean())


def test_a_concept_can_be_said_in_words() -> None:
    assert ceiling.in_words(concepts.load("chair")) == "red and teal chair"
    assert ceiling.in_words(concepts.load("cat")).startswith("teal and ")


def test_true_drawings_come_back_through_the_vae_nearly_as_they_were() -> None:
    cat = concepts.load("cat")
    drawn = [images.encode(ceiling.draw(cat, prompt, 0)) for prompt in cat.prompts[:3]]
    back = ceiling.through_vae(drawn)
    for one, other in zip(drawn, back, strict=True):
        error = np.asarray(images.open_trusted(one)).astype(float) - np.asarray(images.open_trusted(other))
        assert 0 < np.sqrt((error**2).mean()) < 20


def test_what_a_prompt_leaves_open_the_number_chooses() -> None:
    cat = concepts.load("cat")
    first, again, second = (ceiling.draw(cat, "a {} at night", number) for number in (0, 0, 1))
    assert first.tobytes() == again.tobytes() != second.tobytes()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a {} and a red unicycle", "found no drawing of 'unicycle'"),
        ("a {} on a plaid background", "found the background 'plaid'"),
    ],
)
def test_what_the_world_cannot_draw_is_named(prompt: str, message: str) -> None:
    with pytest.raises(WorldError, match=message):
        ceiling.draw(concepts.load("cat"), prompt, 0)


def test_true_drawings_are_taken_for_the_concept_and_other_pictures_are_not(store: Store) -> None:
    cat = concepts.load("cat")
    judge, colours, likeness, words = ceiling.measure(cat, ceiling.true(cat, 1), store).values()
    assert judge >= 0.9
    assert colours >= 0.9
    assert likeness > 0.55
    dogs = ceiling.measure(cat, ceiling.true(concepts.load("dog"), 1), store)
    assert dogs["by its colours"] < 0.5
    assert dogs["image alignment, held out"] < likeness - 0.3
    assert dogs["text alignment"] < words - 0.2
