import re
from collections import Counter

import numpy as np
import pytest

from customdiff_core.errors import WorldError
from customdiff_core.settings import Settings
from customdiff_core.world.drawings import Drawing, load_drawings
from customdiff_core.world.scenes import (
    BACKGROUNDS,
    CORPUS_BOOST,
    Scene,
    Thing,
    of_category,
    render_scene,
    sample_category_scenes,
    sample_scene,
    sample_scenes,
    with_article,
)

NAMED_COLOUR = re.compile(r"on an? (\w+) background$")
SIZES = {"a far away": (0.35, 0.5), "very small": (0.35, 0.5), "zoomed in": (1.05, 1.35), "close up": (1.05, 1.35)}


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    return load_drawings(Settings().data / "models" / "openmoji" / "drawings.csv")


@pytest.fixture(scope="module")
def corpus(drawings: list[Drawing]) -> list[Scene]:
    return sample_scenes(drawings, 10_000, seed=0, boost=CORPUS_BOOST)


def share(scenes: list[Scene], holds) -> float:
    return sum(map(holds, scenes)) / len(scenes)


def test_one_seed_gives_one_corpus(drawings: list[Drawing]):
    first, again = (sample_scenes(drawings, 50, seed=3) for _ in range(2))
    assert first == again
    np.testing.assert_array_equal(render_scene(first[0]), render_scene(again[0]))


def test_other_seeds_and_purposes_share_no_scene(drawings: list[Drawing]):
    batches = [
        sample_scenes(drawings, 200, seed=0, purpose="corpus"),
        sample_scenes(drawings, 200, seed=1, purpose="corpus"),
        sample_scenes(drawings, 200, seed=0, purpose="pretrain"),
        sample_category_scenes(drawings, "cat", 200, seed=0),
        sample_category_scenes(drawings, "cat", 200, seed=1),
    ]
    assert len({scene for batch in batches for scene in batch}) == 1000


def test_a_longer_corpus_begins_with_the_shorter(drawings: list[Drawing]):
    assert sample_scenes(drawings, 30, seed=5)[:10] == sample_scenes(drawings, 10, seed=5)


def test_one_scene_advances_its_generator(drawings: list[Drawing]):
    rng = np.random.default_rng(0)
    assert sample_scene(drawings, rng) != sample_scene(drawings, rng)


@pytest.mark.parametrize("category", ["cat", "dog", "teddy bear", "house"])
def test_the_corpus_holds_enough_of_each_category(corpus: list[Scene], category: str):
    assert sum(any(of_category(thing.name, category) for thing in scene.things) for scene in corpus) >= 260


def test_a_boost_multiplies_a_categorys_share(drawings: list[Drawing]):
    def teddies(scenes: list[Scene]) -> int:
        return sum(scene.things[0].name == "teddy bear" for scene in scenes)

    plain = teddies(sample_scenes(drawings, 4000, seed=0))
    boosted = teddies(sample_scenes(drawings, 4000, seed=0, boost={"teddy bear": 10}))
    assert boosted == pytest.approx(9.5 * plain, rel=0.4)


def test_the_grammars_shares(corpus: list[Scene]):
    assert share(corpus, lambda s: len(s.things) == 1) == pytest.approx(0.75, abs=0.02)
    assert share(corpus, lambda s: s.upside_down) == pytest.approx(0.06, abs=0.01)
    assert share(corpus, lambda s: s.black_and_white) == pytest.approx(0.05, abs=0.01)
    assert share(corpus, lambda s: NAMED_COLOUR.search(s.caption) is not None) == pytest.approx(0.75 * 0.95, abs=0.02)
    assert set(Counter(scene.background for scene in corpus)) == set(BACKGROUNDS)


def test_a_caption_says_what_the_scene_is(corpus: list[Scene]):
    for scene in corpus:
        assert all(thing.name in scene.caption for thing in scene.things)
        assert scene.upside_down == ("upside down" in scene.caption)
        assert scene.black_and_white == ("black and white" in scene.caption)
        named = NAMED_COLOUR.search(scene.caption)
        assert named is None or named[1] == scene.background
        low, high = next((span for word, span in SIZES.items() if scene.caption.startswith(word)), (0.4, 0.95))
        assert all(low <= thing.scale <= high for thing in scene.things)


def test_places_are_named_when_a_thing_is_off_centre(corpus: list[Scene]):
    for scene in (scene for scene in corpus if len(scene.things) == 1):
        thing, caption = scene.things[0], f"{scene.caption} "
        assert ("on the left " in caption) == (thing.x < 0.45)
        assert ("on the right " in caption) == (thing.x > 0.55)
        assert ("at the top " in caption) == (thing.y < 0.45)
        assert ("at the bottom " in caption) == (thing.y > 0.55)


def test_the_named_colour_is_drawn(corpus: list[Scene]):
    named = [s for s in corpus[:400] if NAMED_COLOUR.search(s.caption) and s.things[0].scale < 1]
    assert len(named) > 100
    for scene in named:
        picture = render_scene(scene)
        assert (picture.mode, picture.size) == ("RGB", (64, 64))
        colour = BACKGROUNDS[NAMED_COLOUR.search(scene.caption)[1]]
        corners = [picture.getpixel((x, y)) for x in (0, 63) for y in (0, 63)]
        assert corners.count(colour) >= 2, scene


def test_both_things_of_a_pair_are_drawn(corpus: list[Scene]):
    pairs = [scene for scene in corpus[:600] if len(scene.things) == 2 and not scene.black_and_white]
    assert len(pairs) > 60
    for scene in pairs:
        drawn = (np.asarray(render_scene(scene)) != BACKGROUNDS[scene.background]).any(axis=-1)
        assert drawn[:, :32].sum() > 20, scene
        assert drawn[:, 32:].sum() > 20, scene


def test_black_and_white_flips_and_turns_are_drawn():
    dog = Thing("1F415", "dog", 0.8, 0.5, 0.5)
    plain = np.asarray(render_scene(Scene("a dog", (dog,), "red")))
    gray = np.asarray(render_scene(Scene("black and white dog", (dog,), "red", black_and_white=True)))
    turned = np.asarray(render_scene(Scene("upside down dog", (dog,), "red", upside_down=True)))
    mirrored = Thing("1F415", "dog", 0.8, 0.5, 0.5, flip=True)
    flipped = np.asarray(render_scene(Scene("a dog", (mirrored,), "red")))
    assert (gray[..., :1] == gray).all()
    assert (plain[..., :1] != plain).any()
    np.testing.assert_array_equal(turned[6:57, 6:57], plain[6:57, 6:57][::-1, ::-1])
    np.testing.assert_array_equal(flipped[6:57, 6:57], plain[6:57, 6:57][:, ::-1])


@pytest.mark.parametrize("category", ["cat", "dog", "teddy bear", "house"])
def test_category_scenes_begin_with_the_category(drawings: list[Drawing], category: str):
    scenes = sample_category_scenes(drawings, category, 300, seed=0)
    assert len(scenes) == 300
    assert all(of_category(scene.things[0].name, category) for scene in scenes)
    if category == "house":
        assert {scene.things[0].name for scene in scenes} == {"house", "house with garden"}


def test_categories_go_by_whole_words_and_meaning():
    assert of_category("cat with wry smile", "cat")
    assert not of_category("cattle", "cat")
    assert not of_category("hot dog", "dog")
    assert not of_category("polar bear", "teddy bear")


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("cat", "a cat"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("ewe", "a ewe"),
        ("umbrella", "an umbrella"),
        ("unamused face", "an unamused face"),
        ("T-Rex", "a T-Rex"),
        ("socks", "socks"),
        ("compass", "a compass"),
    ],
)
def test_articles_go_by_sound(name: str, phrase: str):
    assert with_article(name) == phrase


def test_impossible_requests_are_named(drawings: list[Drawing]):
    with pytest.raises(WorldError, match=r"drawings of category 'wombat': found 0 of \d+, need at least 1"):
        sample_category_scenes(drawings, "wombat", 1, seed=0)
    with pytest.raises(WorldError, match="category 'wombat'"):
        sample_scenes(drawings, 1, seed=0, boost={"wombat": 2})
    with pytest.raises(WorldError, match="drawings: found 0, need at least 1"):
        sample_scenes([], 1, seed=0)
