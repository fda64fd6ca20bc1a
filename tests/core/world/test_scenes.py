import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from customdiff_core.errors import WorldError
from customdiff_core.settings import Settings
from customdiff_core.world import settings
from customdiff_core.world.colours import COLOURS, JITTER, name_of
from customdiff_core.world.drawings import Drawing, layers, load_drawings
from customdiff_core.world.odds import Odds
from customdiff_core.world.scenes import (
    CORPUS_BOOST,
    RESERVED,
    Deck,
    Scene,
    Thing,
    elsewhere,
    relatives,
    render_scene,
    sample_category_scenes,
    sample_scenes,
    with_article,
)

SIZES = {"far away": (0.35, 0.5), "very small": (0.35, 0.5), "zoomed in": (1.05, 1.35), "close up": (1.05, 1.35)}
FAR, NEAR = {"far away", "very small"}, {"zoomed in", "close up"}
CONCEPT_CATEGORIES = ("cat", "dog", "teddy bear", "house", "car", "flower", "chair", "turtle", "teapot")


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    return load_drawings(Settings().data / "world" / "drawings.csv")


@pytest.fixture(scope="module")
def corpus(drawings: list[Drawing]) -> list[Scene]:
    return sample_scenes(drawings, 10_000, seed=0, boost=CORPUS_BOOST)


def share(scenes: list[Scene], holds) -> float:
    return sum(map(holds, scenes)) / len(scenes)


def test_one_seed_gives_one_corpus(drawings: list[Drawing]):
    first, again = (sample_scenes(drawings, 50, seed=3) for _ in range(2))
    assert first == again
    np.testing.assert_array_equal(render_scene(first[0]), render_scene(again[0]))
    assert first[0].caption == again[0].caption


def test_other_seeds_and_purposes_share_no_scene(drawings: list[Drawing]):
    batches = [
        sample_scenes(drawings, 200, seed=0, purpose="corpus"),
        sample_scenes(drawings, 200, seed=1, purpose="corpus"),
        sample_scenes(drawings, 200, seed=0, purpose="training"),
        sample_category_scenes(drawings, "cat", 200, seed=0),
        sample_category_scenes(drawings, "cat", 200, seed=1),
    ]
    assert len({scene for batch in batches for scene in batch}) == 1000


def test_a_longer_corpus_begins_with_the_shorter(drawings: list[Drawing]):
    assert sample_scenes(drawings, 30, seed=5)[:10] == sample_scenes(drawings, 10, seed=5)


@pytest.mark.parametrize("category", CONCEPT_CATEGORIES)
def test_the_corpus_holds_enough_of_each_concepts_category(corpus: list[Scene], category: str):
    assert sum(any(thing.drawing.category == category for thing in scene.things) for scene in corpus) >= 260


def test_a_boost_multiplies_a_categorys_share(drawings: list[Drawing]):
    def teddies(scenes: list[Scene]) -> int:
        return sum(scene.things[0].drawing.category == "teddy bear" for scene in scenes)

    plain = teddies(sample_scenes(drawings, 4000, seed=0))
    boosted = teddies(sample_scenes(drawings, 4000, seed=0, boost={"teddy bear": 10}))
    assert boosted == pytest.approx(8.7 * plain, rel=0.4)


def test_things_come_in_two_colours_as_often_as_is_asked(drawings: list[Drawing]):
    paints = (0.1, 0.2, 0.7)
    firsts = sample_scenes(drawings, 2000, seed=0, odds=Odds(paints=paints))
    rng, deck = np.random.default_rng(2), Deck(drawings, {}, odds=Odds(paints=paints))
    plainer = [scene for scene in firsts if len(scene.things) == 1 and len(scene.things[0].paint) < 2]
    repainted = [relatives(scene, deck, rng)[4] for scene in plainer]
    for scenes in (firsts, repainted):
        things = [thing for scene in scenes for thing in scene.things]
        for number, odds in enumerate(paints):
            assert share(things, lambda thing, n=number: len(thing.paint) == n) == pytest.approx(odds, abs=0.04)
    reserved = {(category, paint) for category, paints in RESERVED.items() for paint in paints}
    assert not {(thing.drawing.category, shown(thing)) for scene in firsts for thing in scene.things} & reserved


def test_far_things_and_pairs_come_as_often_as_is_asked(drawings: list[Drawing]):
    scenes = sample_scenes(drawings, 2000, seed=0, odds=Odds(sizes=(0.5, 0.4, 0.1), together=0.6))
    assert share(scenes, lambda s: len(s.things) == 2) == pytest.approx(0.6, abs=0.04)
    alone = [scene for scene in scenes if len(scene.things) == 1]
    assert share(alone, lambda s: s.size in FAR) == pytest.approx(0.5, abs=0.05)
    assert share(alone, lambda s: s.size in NEAR) == pytest.approx(0.1, abs=0.04)


def test_a_twin_is_the_same_things_in_another_picture(drawings: list[Drawing], corpus: list[Scene]):
    rng, deck = np.random.default_rng(4), Deck(drawings, {})
    pairs = [(scene, elsewhere(scene, deck, rng)) for scene in corpus[:2000]]
    for scene, twin in pairs:
        assert sorted(one.identity for one in scene.things) == sorted(one.identity for one in twin.things)
        assert scene.black_and_white == twin.black_and_white
        worn = {colour for thing in twin.things for colour in thing.paint}
        assert twin.setting.partition(" ")[0] not in worn
    assert share(pairs, lambda pair: pair[0].setting != pair[1].setting) > 0.9
    assert share(pairs, lambda pair: pair[0].seed != pair[1].seed) == 1
    scales = np.array([[one.things[0].scale for one in pair] for pair in pairs if len(pair[0].things) == 1])
    assert abs(np.corrcoef(scales.T)[0, 1]) < 0.1
    turned = [pair for pair in pairs if len({one.identity for one in pair[0].things}) == 2]
    assert share(turned, lambda pair: pair[0].things[0].identity != pair[1].things[0].identity) == pytest.approx(
        0.5, abs=0.06
    )
    cats = [pair for pair in pairs if pair[0].things[0].drawing.category == "cat" and len(pair[0].things) == 1]
    painted = [{one.things[0].drawing.code for one in pair} for pair in cats if pair[0].things[0].paint]
    assert share(painted, lambda codes: len(codes) == 2) > 0.5


def test_the_grammars_shares(corpus: list[Scene]):
    assert share(corpus, lambda s: len(s.things) == 1) == pytest.approx(0.7, abs=0.02)
    assert share(corpus, lambda s: s.upside_down) == pytest.approx(0.04, abs=0.01)
    assert share(corpus, lambda s: s.setting in settings.PLACES) == pytest.approx(0.33, abs=0.02)
    things = [thing for scene in corpus for thing in scene.things]
    assert share(things, lambda thing: not thing.paint) == pytest.approx(0.35, abs=0.02)
    assert share(things, lambda thing: len(thing.paint) == 2) == pytest.approx(0.2, abs=0.02)
    assert {scene.setting for scene in corpus} == set(settings.SETTINGS)


def test_things_come_in_every_colour_and_captions_say_so(corpus: list[Scene]):
    singles = [s for s in corpus if len(s.things) == 1 and not s.black_and_white and len(s.things[0].paint) == 1]
    told = [s for s in singles if f"{s.things[0].paint[0]} {s.things[0].drawing.category}" in s.caption]
    assert len(told) / len(singles) == pytest.approx(0.9, abs=0.02)
    cats = Counter(s.things[0].paint[0] for s in singles if s.things[0].drawing.category == "cat")
    assert set(cats) == set(COLOURS)


def shown(thing: Thing) -> tuple[str, str]:
    """What the two paints of a thing are called, whoever chose them."""
    parts = layers(thing.drawing.code, thing.drawing.paint)
    own = name_of(parts.main_colour), name_of(parts.second_colour)
    main, second = (*thing.paint, *own[len(thing.paint) :])
    return (main, main) if parts.related and len(thing.paint) == 1 else (main, second)


def test_no_concepts_own_colouring_is_ever_drawn(drawings: list[Drawing], corpus: list[Scene]):
    rng = np.random.default_rng(0)
    deck = Deck(drawings, {})
    every = [*corpus, *(one for scene in corpus[:4000] for one in relatives(scene, deck, rng))]
    seen = {(thing.drawing.category, shown(thing)) for scene in every for thing in scene.things}
    reserved = {(category, paint) for category, paints in RESERVED.items() for paint in paints}
    assert len(reserved) > 15
    assert not seen & reserved
    assert {("cat", ("pink", "teal")), ("dog", ("purple", "red"))} <= seen


def test_held_out_drawings_are_never_drawn(drawings: list[Drawing], corpus: list[Scene]):
    hidden = {one.code for one in drawings if one.held_out}
    assert len(hidden) >= 8
    rng = np.random.default_rng(1)
    deck = Deck(drawings, {})
    every = [*corpus, *(one for scene in corpus[:1000] for one in relatives(scene, deck, rng))]
    assert not hidden & {thing.drawing.code for scene in every for thing in scene.things}


def test_a_caption_says_what_the_scene_is(corpus: list[Scene]):
    for scene in corpus:
        assert all(thing.drawing.category in scene.caption for thing in scene.things)
        assert scene.upside_down == ("upside down" in scene.caption)
        assert not scene.black_and_white or "black and white" in scene.caption
        assert (scene.setting in settings.PLACES) == any(place in scene.caption for place in settings.PLACES)
        low, high = next((span for word, span in SIZES.items() if word in scene.caption), (0.4, 0.95))
        assert all(low <= thing.scale <= high for thing in scene.things)
        background = re.search(r"on an? (.+) background$", scene.caption)
        if background and not scene.black_and_white:
            assert background[1] == scene.setting


def test_places_are_named_when_a_thing_is_off_centre(corpus: list[Scene]):
    for scene in (scene for scene in corpus if len(scene.things) == 1):
        thing, caption = scene.things[0], f"{scene.caption} "
        assert ("on the left " in caption) == (thing.x < 0.45)
        assert ("on the right " in caption) == (thing.x > 0.55)
        assert ("at the top " in caption) == (thing.y < 0.45)
        assert ("at the bottom " in caption) == (thing.y > 0.55)


def test_the_named_background_is_drawn(corpus: list[Scene]):
    named = [s for s in corpus[:600] if s.setting in COLOURS and not s.black_and_white and s.things[0].scale < 1]
    assert len(named) > 100
    for scene in named:
        pixels = np.asarray(render_scene(scene)).astype(int)
        assert pixels.shape == (64, 64, 3)
        corners = pixels[[0, 0, 63, 63], [0, 63, 0, 63]]
        near = np.abs(corners - COLOURS[scene.setting]).max(axis=1) <= JITTER + 1
        assert near.sum() >= 2, scene


def test_both_things_of_a_pair_are_drawn(corpus: list[Scene]):
    pairs = [scene for scene in corpus[:600] if len(scene.things) == 2]
    assert len(pairs) > 100
    for scene in pairs:
        drawn = (
            np.abs(np.asarray(render_scene(scene)).astype(int) - render_scene(replace(scene, things=()))).max(axis=-1)
            > 8
        )
        assert drawn[:, :32].sum() > 20, scene
        assert drawn[:, 32:].sum() > 20, scene


def test_paint_reaches_the_picture():
    cat = Thing(Drawing("1F63A", "cat", "{}", 1), ("teal", "pink"), 0.9, 0.5, 0.5)
    pixels = np.asarray(render_scene(Scene((cat,), "white"), 128)).astype(int)
    for colour in ("teal", "pink"):
        near = np.abs(pixels - COLOURS[colour]).max(axis=-1) <= JITTER + 6
        assert near.mean() > 0.04, colour
    own = np.asarray(render_scene(Scene((replace(cat, paint=()),), "white"), 128)).astype(int)
    assert (np.abs(own - (0xF4, 0xAA, 0x41)).max(axis=-1) <= 6).mean() > 0.1


def test_one_colour_shades_the_second_paint_of_the_same_kind():
    cat = Thing(Drawing("1F63A", "cat", "{}", 1), ("blue",), 0.9, 0.5, 0.5)
    pixels = np.asarray(render_scene(Scene((cat,), "white"), 128)).astype(int).reshape(-1, 3)
    bluish = pixels[(pixels[:, 2] > 100) & (pixels[:, 2] - pixels[:, 0] > 50)]
    assert len(np.unique(bluish // 16, axis=0)) >= 2
    assert np.ptp(bluish[:, 2]) > 40


def test_black_and_white_flips_and_turns_are_drawn():
    dog = Thing(Drawing("1F415", "dog", "{}", 1), (), 0.8, 0.5, 0.5)
    plain = np.asarray(render_scene(Scene((dog,), "red")))
    gray = np.asarray(render_scene(Scene((dog,), "red", black_and_white=True)))
    turned = np.asarray(render_scene(Scene((dog,), "red", upside_down=True)))
    flipped = np.asarray(render_scene(Scene((replace(dog, flip=True),), "red")))
    assert (gray[..., :1] == gray).all()
    assert (plain[..., :1] != plain).any()
    np.testing.assert_array_equal(turned[6:57, 6:57], plain[6:57, 6:57][::-1, ::-1])
    np.testing.assert_array_equal(flipped[6:57, 6:57], plain[6:57, 6:57][:, ::-1])


def test_relatives_differ_in_what_captions_say(drawings: list[Drawing], corpus: list[Scene]):
    rng, deck = np.random.default_rng(0), Deck(drawings, {})
    families = [(scene, relatives(scene, deck, rng)) for scene in corpus[:500]]

    def categories(scene: Scene) -> list[str]:
        return [thing.drawing.category for thing in scene.things]

    assert all(len(others) == 7 for _, others in families)
    for scene, others in families:
        assert sum(categories(one) != categories(scene) for one in others[:4]) == 4
        assert all(categories(one) == categories(scene) for one in others[4:6])
        assert all(one.seed == scene.seed and one.size == scene.size for one in others)
    told = [one.caption != scene.caption for scene, others in families for one in others]
    assert np.mean(told) > 0.85


def test_relatives_of_two_colours_show_which_part_has_which(drawings: list[Drawing]):
    paints = (0.0, 0.0, 1.0)
    rng, deck = np.random.default_rng(3), Deck(drawings, {}, odds=Odds(paints=paints))
    firsts = [
        scene
        for scene in sample_scenes(drawings, 2000, seed=1, odds=Odds(paints=paints))
        if len(scene.things) == 1 and not scene.black_and_white
    ]
    changes = Counter[str]()
    for scene in firsts:
        main, second = scene.things[0].paint
        for one in relatives(scene, deck, rng)[4:6]:
            paint = one.things[0].paint
            kinds = {(second, main): "exchanged", (main, *paint[1:]): "second", (*paint[:-1], second): "main"}
            changes[kinds.get(paint, "both") if len(paint) == 2 else "fewer"] += 1
    of_all = {name: changes[name] / changes.total() for name in ("exchanged", "main", "second", "both", "fewer")}
    assert min(of_all[name] for name in ("exchanged", "main", "second", "both")) > 0.15  # by chance one in a hundred is
    assert of_all["fewer"] == 0


@pytest.mark.parametrize("place", list(settings.PLACES))
def test_a_place_is_drawn_in_many_ways(place: str):
    first, second = (np.asarray(settings.draw(place, 64, np.random.default_rng(seed))) for seed in (0, 1))
    assert first.shape == (64, 64, 3)
    assert np.abs(first.astype(int) - second).max() > 4


@pytest.mark.parametrize("category", ["cat", "teddy bear", "house"])
def test_category_scenes_begin_with_the_category(drawings: list[Drawing], category: str):
    scenes = sample_category_scenes(drawings, category, 300, seed=0)
    assert len(scenes) == 300
    assert all(scene.things[0].drawing.category == category for scene in scenes)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [("cat", "a cat"), ("owl", "an owl"), ("unicorn", "a unicorn"), ("umbrella", "an umbrella"), ("ewe", "a ewe")],
)
def test_articles_go_by_sound(name: str, phrase: str):
    assert with_article(name) == phrase


def test_impossible_requests_are_named(drawings: list[Drawing]):
    with pytest.raises(WorldError, match=r"drawings of wombat: found 0 of \d+, need at least 1"):
        sample_category_scenes(drawings, "wombat", 1, seed=0)
    with pytest.raises(WorldError, match="drawings of wombat"):
        sample_scenes(drawings, 1, seed=0, boost={"wombat": 2})
    with pytest.raises(WorldError, match="found 0 of 0, need at least 1"):
        sample_scenes([], 1, seed=0)
