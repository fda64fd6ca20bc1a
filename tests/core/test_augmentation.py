import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from customdiff_core import concepts, images, tables
from customdiff_core.augmentation import (
    FAR,
    NEAR,
    PASTE_BELOW,
    View,
    augment,
    border_colour,
    bucket,
    draw_view,
    latent_mask,
    opaque_mask,
    prompt_of,
    render_view,
)
from customdiff_core.config import AugmentConfig, EarlyStop, Runtime
from customdiff_core.errors import TrainingError
from customdiff_core.evaluation import results
from customdiff_core.finetuning.components import load_vae
from customdiff_core.finetuning.finetune import make_trainer
from customdiff_core.finetuning.loop import Examples, batches
from customdiff_core.latents import Latents, load_latents
from customdiff_core.recipes import Recipe

SIDE = 512
MANY = [draw_view(number, 5, AugmentConfig(resolution=SIDE)) for number in range(6000)]


def view(scale: int, top: int = 0, left: int = 0, flip: bool = False) -> View:
    return View(0, scale, top, left, flip, "")


# The paper's distribution


def test_two_views_of_three_are_resized_from_a_third_up_to_the_whole():
    smaller = [one.scale for one in MANY if one.scale <= SIDE]
    assert len(smaller) / len(MANY) == pytest.approx(2 / 3, abs=0.02)  # 3.3 standard errors
    assert min(smaller) == math.ceil(SIDE / 3)
    assert max(smaller) == SIDE
    assert np.mean(smaller) == pytest.approx((SIDE / 3 + SIDE) / 2, rel=0.02)  # uniform


def test_the_others_are_enlarged_by_a_fifth_to_two():
    larger = [one.scale for one in MANY if one.scale > SIDE]
    assert min(larger) == math.ceil(1.2 * SIDE)
    assert max(larger) == math.ceil(1.4 * SIDE) - 1
    assert np.mean(larger) == pytest.approx(1.3 * SIDE, rel=0.01)


def test_the_prefix_follows_the_scale():
    for one in MANY:
        if one.scale < 0.6 * SIDE:
            assert one.prefix in {"a far away ", "very small "}
        elif one.scale > SIDE:
            assert one.prefix in {"zoomed in ", "close up "}
        else:
            assert one.prefix == ""
    for words in (FAR, NEAR):
        counts = [sum(one.prefix == word for one in MANY) for word in words]
        assert min(counts) > 0.45 * sum(counts)


def test_half_of_the_views_are_flipped():
    assert np.mean([one.flip for one in MANY]) == pytest.approx(0.5, abs=0.025)


def test_places_reach_every_corner_and_no_further():
    far = [one for one in MANY if one.scale < PASTE_BELOW * SIDE]
    near = [one for one in MANY if one.scale > SIDE]
    for group in (far, near):
        shares = np.array([(one.top, one.left) for one in group]) / [[abs(SIDE - one.scale)] for one in group]
        assert shares.min() < 0.01
        assert shares.max() > 0.99
        assert shares.max() <= 1
        assert shares.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.03)
    assert all((one.top, one.left) == (0, 0) for one in MANY if PASTE_BELOW * SIDE <= one.scale <= SIDE)


@pytest.mark.parametrize(("probability", "few"), [(0.0, False), (1.0, True)])
def test_the_probabilities_are_settings(probability: float, few: bool):
    config = AugmentConfig(resolution=64, resize_probability=probability, flip_probability=probability)
    views = [draw_view(number, 1, config) for number in range(50)]
    assert {one.scale <= 64 for one in views} == {few}
    assert {one.flip for one in views} == {few}


def test_every_picture_is_seen_equally_often():
    counts = np.bincount([draw_view(number, 5, AugmentConfig(resolution=64)).picture for number in range(60)])
    assert counts.tolist() == [12] * 5


def test_views_depend_on_the_seed_and_their_number_alone():
    config = AugmentConfig(resolution=64, views=10)
    ten = [draw_view(number, 3, config) for number in range(10)]
    assert [draw_view(number, 3, config.model_copy(update={"views": 99})) for number in range(10)] == ten
    assert [draw_view(number, 3, config.model_copy(update={"seed": 1})) for number in range(10)] != ten
    assert len(set(ten)) > 5


def test_a_picture_is_told_by_its_captions_and_by_the_instance_prompt_in_turn(cat):
    told: dict[int, list[str]] = {}
    for number in range(240):
        drawn = draw_view(number, len(cat.images), AugmentConfig(resolution=64))
        plain = dataclasses.replace(drawn, prefix="")
        told.setdefault(drawn.picture, []).append(prompt_of(plain, cat))
    for picture, prompts in told.items():
        captions = [cat.with_concept(one) for one in ("photo of a {}", *cat.images[picture].captions)]
        assert prompts == captions * 10


def test_without_captions_all_of_a_pictures_views_are_told_by_the_instance_prompt(cat):
    plain = cat.model_copy(update={"images": tuple(one.model_copy(update={"captions": ()}) for one in cat.images)})
    views = [draw_view(number, len(cat.images), AugmentConfig(resolution=64)) for number in range(24)]
    assert {prompt_of(one, plain) for one in views} == {f"{one.prefix}photo of a <teal-cat> cat" for one in views}


@pytest.mark.parametrize(
    ("prefix", "words", "told"),
    [
        ("a far away ", "photo of a {} on a rug", "a far away photo of a <teal-cat> cat on a rug"),
        ("a far away ", "a {} on a rug", "a far away <teal-cat> cat on a rug"),
        ("close up ", "an angry {}", "close up angry <teal-cat> cat"),
        ("", "a {} on a rug", "a <teal-cat> cat on a rug"),
    ],
)
def test_words_of_size_take_the_place_of_an_article(prefix: str, words: str, told: str, cat):
    images = tuple(one.model_copy(update={"captions": (words,)}) for one in cat.images)
    drawn = View(0, 64, 0, 0, False, prefix, turn=1)
    assert prompt_of(drawn, cat.model_copy(update={"images": images})) == told


# Rendering


def test_a_far_view_is_pasted_on_grey():
    shown = np.asarray(render_view(Image.new("RGB", (80, 80), (255, 0, 0)), view(24, top=10, left=30), 64))
    inside = np.zeros((64, 64), bool)
    inside[10:34, 30:54] = True
    assert (shown[inside] == [255, 0, 0]).all()
    assert (shown[~inside] == [127, 127, 127]).all()  # (127 / 127.5 - 1) is the VAE's zero


def pasted(colour: str, touching: bool) -> Image.Image:
    """A white square in the middle of a coloured picture, or at its lower edge."""
    picture = Image.new("RGB", (96, 64), colour)
    picture.paste("white", (40, 48 if touching else 24, 56, 64 if touching else 40))
    return picture


def test_the_border_that_counts_is_that_of_the_part_that_is_seen():
    picture = pasted("red", touching=False)
    picture.paste("blue", (0, 0, 8, 64))  # outside the middle square
    assert border_colour(picture, (64, 64)) == (255, 0, 0)
    assert border_colour(picture, (96, 64)) is None
    assert border_colour(pasted("red", touching=True), (64, 64)) is None
    assert border_colour(Image.effect_noise((64, 64), 40).convert("RGB"), (64, 64)) is None


def test_what_a_compressed_picture_has_of_noise_leaves_a_border_its_one_colour():
    noise = np.random.default_rng(0).integers(-2, 3, (64, 64, 3))
    assert border_colour(Image.fromarray((np.full((64, 64, 3), 200) + noise).astype(np.uint8)), (64, 64)) == (200,) * 3


def test_on_a_canvas_of_its_borders_colour_a_far_picture_goes_on_and_counts_all_over():
    picture, far = pasted("red", touching=False), view(24, top=10, left=30)
    shown = np.asarray(render_view(picture, far, 64, border_colour(picture, (64, 64)) or (0, 0, 0))).astype(int)
    assert (shown[..., 0] >= 250).all()
    assert (shown[..., 1] > 128).sum() == pytest.approx(6 * 6, abs=8)  # the white square, at 24 of 64
    assert latent_mask(far, 64, 16, known=True).all()
    assert not latent_mask(far, 64, 16).all()


def test_far_views_of_a_flat_picture_are_learnt_whole_where_that_is_asked_for(chain):
    flat = [border_colour(images.decode(chain.concept.read(one), one.name), (64, 64)) for one in chain.concept.images]
    assert any(flat)
    for asked in (True, False):
        config = chain.augment_config.model_copy(update={"flat_canvas": asked, "views": 36})
        made = augment(chain.concept, None, chain.profile, config, store=chain.store)
        table = tables.read(chain.store, made, "examples")
        rows = table[["width", "height", "latent_row"]].itertuples(index=False, name=None)
        latents = load_latents(chain.store.path(made) / "latents.safetensors", rows)
        views = [draw_view(number, len(flat), config) for number in range(36)]
        far = [one for one in views if one.scale < 0.6 * 64]
        whole = [bool(latents[number].mask.all()) for number in range(36)]
        assert far
        assert whole == [one not in far or (asked and flat[one.picture] is not None) for one in views]


def test_a_near_view_is_a_crop():
    ramp = Image.fromarray(np.tile(np.arange(160, dtype=np.uint8)[:, None, None], (1, 160, 3)))
    shown = np.asarray(render_view(ramp, view(80, top=16, left=0), 64)).astype(int)
    assert shown.shape == (64, 64, 3)
    assert shown[0, 0, 0] == pytest.approx(16 * 2, abs=2)
    assert shown[-1, 0, 0] == pytest.approx(79 * 2, abs=2)


def test_a_plain_view_fills_the_picture():
    assert (np.asarray(render_view(Image.new("RGB", (99, 99), (9, 9, 9)), view(50), 64)) == 9).all()


@pytest.mark.parametrize("scale", [24, 50, 80])
def test_a_flip_mirrors_the_picture_and_not_its_place(scale: int):
    half = Image.new("RGB", (64, 64), (255, 255, 255))
    half.paste((0, 0, 0), (0, 0, 32, 64))
    plain, flipped = (np.asarray(render_view(half, view(scale, 2, 2, flip), 64)).astype(int) for flip in (False, True))
    row = 10
    assert plain[row, 4, 0] < 10
    assert flipped[row, 4, 0] > 245
    grey = (plain == 127).all(axis=-1) & (flipped == 127).all(axis=-1)
    assert grey.sum() == (64 * 64 - 24 * 24 if scale == 24 else 0)


@pytest.mark.parametrize("scale", [30, 50, 80])
def test_a_picture_that_is_not_square_is_cropped_and_not_squashed(scale: int):
    """A disc stays a disc: as wide as it is high."""
    wide = Image.new("RGB", (240, 100), (0, 0, 0))
    yy, xx = np.mgrid[:100, :240]
    pixels = np.asarray(wide).copy()
    pixels[(yy - 50) ** 2 + (xx - 120) ** 2 < 25**2] = (255, 255, 255)
    pixels[:, :60] = pixels[:, 180:] = (0, 255, 0)  # beyond the centred square
    shown = np.asarray(render_view(Image.fromarray(pixels), view(scale, 0, 0), 64)).astype(int)
    disc = shown[..., 0] > 200
    height, width = disc.any(axis=1).sum(), disc.any(axis=0).sum()
    assert abs(int(height) - int(width)) <= 1
    assert not ((shown[..., 1] > 200) & (shown[..., 0] < 50)).any()


# Masks


def covered_cells(start: int, length: int, side: int, cells: int) -> set[int]:
    """Latent cells that lie wholly in the pasted box, one axis."""
    return {i for i in range(cells) if i * side >= start * cells and (i + 1) * side <= (start + length) * cells}


@settings(max_examples=200, deadline=None)
@given(data=st.data(), side=st.integers(2, 64).map(lambda n: 8 * n), factor=st.sampled_from([4, 8]))
def test_the_mask_is_the_pasted_box_eroded_by_one_cell_and_never_empty(data: st.DataObject, side: int, factor: int):
    cells = side // factor
    scale = data.draw(st.integers(math.ceil(side / 3), math.ceil(1.4 * side)))
    pasted = scale < PASTE_BELOW * side
    top, left = (data.draw(st.integers(0, side - scale)) if pasted else 0 for _ in range(2))
    mask = latent_mask(view(scale, top, left), side, cells)
    assert mask.shape == (cells, cells)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    if not pasted:
        assert mask.all()
        return
    assert mask.sum() >= 1
    for axis, start in ((1, top), (0, left)):
        found = set(np.flatnonzero(mask.any(axis=axis)).tolist())
        whole = covered_cells(start, scale, side, cells)
        eroded = whole - {min(whole), max(whole)} if len(whole) > 2 else set()
        if eroded:
            assert found == eroded
        else:  # too small to erode: its middle cell, which the box touches
            assert len(found) == 1
            assert (cell := found.pop()) * side < (start + scale) * cells
            assert (cell + 1) * side > start * cells


@settings(max_examples=100, deadline=None)
@given(side=st.integers(16, 512), number=st.integers(0, 10_000))
def test_no_view_that_is_drawn_has_an_empty_mask(side: int, number: int):
    drawn = draw_view(number, 3, AugmentConfig(resolution=side))
    assert latent_mask(drawn, side, side // 8).sum() > 0
    assert render_view(Image.new("RGB", (40, 30)), drawn, side).size == (side, side)


# The stage


def test_the_training_set_holds_views_then_regularization_images(chain):
    table = tables.read(chain.store, chain.training_set, "examples")
    prior = tables.read(chain.store, chain.regularization, "regularization")
    assert table["role"].tolist() == ["concept"] * 12 + ["regularization"] * 24
    assert table["latent_row"].tolist() == list(range(36))
    views = table[:12]
    for row in views.itertuples():
        drawn = draw_view(row.Index, len(chain.concept.images), chain.augment_config)
        assert row.prompt == prompt_of(drawn, chain.concept)
    assert views["source_sha256"].value_counts().tolist() == [2] * 6
    assert set(views["source_sha256"]) == {picture.sha256 for picture in chain.concept.images}
    assert table["prompt"][12:].tolist() == prior["caption"].tolist()
    assert table["source_sha256"][12:].tolist() == prior["source_sha256"].tolist()


def test_its_pictures_and_masks_are_those_of_its_rows(chain):
    table = tables.read(chain.store, chain.training_set, "examples")
    rows = table[["width", "height", "latent_row"]].itertuples(index=False, name=None)
    latents = load_latents(chain.store.path(chain.training_set) / "latents.safetensors", rows)
    shapes = {(tuple(one.mean.shape), tuple(one.logvar.shape), tuple(one.mask.shape)) for one in latents}
    assert shapes == {((6, 16, 16), (6, 16, 16), (1, 16, 16))}
    pictures = {one.sha256: images.decode(chain.concept.read(one), one.name) for one in chain.concept.images}
    for row in table[:12].itertuples():
        drawn = View(0, row.scale, row.top, row.left, row.flip, row.prefix)
        expected = render_view(pictures[row.source_sha256], drawn, 64)
        assert np.array_equal(np.asarray(images.open_trusted(row.image)), np.asarray(expected))
        assert np.array_equal(latents[row.Index].mask[0].numpy(), latent_mask(drawn, 64, 16))
    assert all(one.mask.all() for one in latents[12:])


def assert_encoded(chain, shown: Sequence[Image.Image], found: Sequence[Latents]) -> None:
    """Latents are their own pictures', and no other's: what the VAE says of each alone."""
    vae = load_vae(chain.profile.model)
    for picture, one in zip(shown, found, strict=True):
        pixels = torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            posterior = vae.encode(pixels).latent_dist
        torch.testing.assert_close(one.mean, posterior.mean[0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(one.logvar, posterior.logvar[0], atol=1e-3, rtol=1e-3)


def test_its_latents_are_those_of_its_pictures(chain):
    table = tables.read(chain.store, chain.training_set, "examples")
    prior = tables.read(chain.store, chain.regularization, "regularization")
    rows = table[["width", "height", "latent_row"]].itertuples(index=False, name=None)
    found = load_latents(chain.store.path(chain.training_set) / "latents.safetensors", rows)
    shown = [images.open_trusted(data) for data in (*table["image"][:12], *prior["image"])]
    assert {one.size for one in shown} == {(64, 64)}
    assert_encoded(chain, shown, found)


def test_it_is_made_once_and_equally_in_another_store(chain, store):
    again = augment(chain.concept, chain.regularization, chain.profile, chain.augment_config, store=chain.store)
    assert again == chain.training_set
    link = store.root / "regularization" / chain.regularization.key
    link.parent.mkdir(parents=True)
    link.symlink_to(chain.store.path(chain.regularization))
    other = augment(chain.concept, chain.regularization, chain.profile, chain.augment_config, store=store)
    assert other == chain.training_set  # sha256 of the content


def test_without_random_sizes_every_view_is_the_whole_picture():
    config = AugmentConfig(resolution=64, random_resize=False)
    views = [draw_view(number, 3, config) for number in range(40)]
    assert {(view.scale, view.top, view.left, view.prefix) for view in views} == {(64, 0, 0, "")}
    assert {view.flip for view in views} == {True, False}
    assert [view.picture for view in views[:4]] == [0, 1, 2, 0]


@pytest.mark.parametrize("scale", [30, 64, 80])
def test_only_opaque_cells_count_and_a_mask_is_never_empty(scale: int):
    view = View(0, scale, 4, 6, False, "")
    mask = latent_mask(view, 64, 16)
    left = Image.new("RGB", (64, 64), "black")
    left.paste("white", (0, 0, 32, 64))
    found = opaque_mask(left, view, mask, 64)
    assert 0 < found.sum() < mask.sum()
    assert (found <= mask).all()
    columns = np.nonzero(found)[1]
    assert columns.max() < np.nonzero(mask)[1].max()
    assert np.array_equal(opaque_mask(Image.new("RGB", (64, 64), "black"), view, mask, 64), mask)
    assert np.array_equal(opaque_mask(Image.new("RGB", (64, 64), "white"), view, mask, 64), mask)


def test_a_mirrored_view_has_its_mask_mirrored():
    left = Image.new("RGB", (64, 64), "black")
    left.paste("white", (0, 0, 32, 64))
    plain, mirrored = (
        opaque_mask(left, View(0, 64, 0, 0, flip, ""), np.ones((16, 16), np.float32), 64) for flip in (False, True)
    )
    assert np.array_equal(plain[:, ::-1], mirrored)


def test_where_alpha_counts_each_views_mask_is_that_of_its_own_picture(chain, make_concept):
    """Of two pictures one is opaque on its left half alone; the other has no alpha channel."""
    folder = make_concept(pictures=0)
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    noise.save(folder / "images" / "whole.png")
    noise.putalpha(half)
    noise.save(folder / "images" / "half.png")
    concept, masks = concepts.load_folder(folder), dict[bool, list[np.ndarray]]()
    for counts in (False, True):
        config = AugmentConfig(resolution=64, views=16, alpha_masks=counts)
        made = augment(concept, None, chain.profile, config, store=chain.store)
        table = tables.read(chain.store, made, "examples")
        rows = table[["width", "height", "latent_row"]].itertuples(index=False, name=None)
        latents = load_latents(chain.store.path(made) / "latents.safetensors", rows)
        masks[counts] = [one.mask[0].numpy() for one in latents]
    for number, (plain, narrowed) in enumerate(zip(masks[False], masks[True], strict=True)):
        view = draw_view(number, 2, AugmentConfig(resolution=64))
        partly = concept.images[view.picture].name == "half.png"
        wanted = opaque_mask(half.convert("RGB"), view, plain, 64) if partly else plain
        assert np.array_equal(narrowed, wanted)
    assert sum(int(one.sum()) for one in masks[True]) < 0.85 * sum(int(one.sum()) for one in masks[False])


def test_a_training_set_may_have_no_regularization_images(chain):
    config = AugmentConfig(resolution=64, views=3)
    made = augment(chain.concept, None, chain.profile, config, store=chain.store)
    assert set(tables.read(chain.store, made, "examples")["role"]) == {"concept"}
    assert made.rows == 3


# Aspect buckets


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 4000), height=st.integers(1, 4000), side=st.sampled_from([64, 512, 768, 1024]))
def test_a_bucket_has_about_the_squares_area_and_the_pictures_shape(width: int, height: int, side: int):
    wide, high = bucket((width, height), side)
    assert wide % (side // 8) == high % (side // 8) == 0
    assert wide * high == pytest.approx(side**2, rel=0.12)
    assert (high, wide) == bucket((height, width), side)
    if 0.5 < width / height < 2:
        assert abs(math.log(wide / high) - math.log(width / height)) < 0.32


def test_buckets_are_the_usual_ones():
    found = [bucket(size, 512) for size in ((512, 512), (4000, 3000), (3000, 4000), (1920, 1080), (100, 1000))]
    assert found == [(512, 512), (576, 448), (448, 576), (704, 384), (384, 704)]


@pytest.mark.parametrize("scale", [30, 64, 80])
def test_a_bucket_shows_more_of_a_wide_picture_and_squashes_nothing(scale: int):
    pixels = np.zeros((100, 180, 3), np.uint8)
    yy, xx = np.mgrid[:100, :180]
    pixels[(yy - 50) ** 2 + (xx - 90) ** 2 < 25**2] = (255, 255, 255)
    pixels[:, :30] = pixels[:, 150:] = (0, 255, 0)  # cut off by the middle square
    shape = bucket((180, 100), 64)
    shown = np.asarray(render_view(Image.fromarray(pixels), View(0, scale, 0, 0, False, "", shape), 64)).astype(int)
    assert shown.shape == (48, 88, 3)
    disc = shown[..., 0] > 200
    if scale <= 64:
        assert abs(int(disc.any(axis=1).sum()) - int(disc.any(axis=0).sum())) <= 2
    assert ((shown[..., 1] > 200) & (shown[..., 0] < 50)).any()
    cells = latent_mask(View(0, scale, 0, 0, False, "", shape), 64, 16)
    assert cells.shape == (12, 22)
    if scale == 30:
        assert np.argwhere(cells).max(axis=0).tolist() == [round(48 * 30 / 64) // 4 - 2, round(88 * 30 / 64) // 4 - 2]
    else:
        assert cells.all()


def test_each_picture_keeps_its_shape_and_every_shape_has_the_regularization_images(chain, make_concept):
    folder = make_concept(pictures=0)
    for number, size in enumerate([(60, 60), (120, 60), (60, 60), (60, 90)]):
        Image.effect_noise(size, 80).save(folder / "images" / f"{number}.png")
    concept, config = concepts.load_folder(folder), AugmentConfig(resolution=64, views=8, aspect_buckets=True)
    made = augment(concept, chain.regularization, chain.profile, config, store=chain.store)
    table = tables.read(chain.store, made, "examples")
    shapes = [(64, 64), (88, 48), (64, 64), (56, 80)]
    assert [tuple(one) for one in table[["width", "height"]][:8].to_numpy()] == 2 * shapes
    for row in table[:8].itertuples():
        assert images.open_trusted(row.image).size == (row.width, row.height)
    prior = table[8:]
    assert prior.groupby(["width", "height"]).size().to_dict() == dict.fromkeys(set(shapes), 24)
    rows = table[["width", "height", "latent_row"]].itertuples(index=False, name=None)
    found = load_latents(chain.store.path(made) / "latents.safetensors", rows)
    for one, (width, height) in zip(found, table[["width", "height"]].itertuples(index=False), strict=True):
        assert one.mean.shape == one.logvar.shape == (6, height // 4, width // 4)
        assert one.mask.shape == (1, height // 4, width // 4)
    assert results.views(made, chain.store, 2)[1]["mask"].shape == (12, 22)
    scenes = tables.read(chain.store, chain.regularization, "regularization").set_index("source_sha256")["image"]
    for shape in set(shapes):
        of_shape = [row for row in table.itertuples() if (row.width, row.height) == shape]
        own = [images.open_trusted(row.image or scenes[row.source_sha256]) for row in of_shape]
        shown = [images.center_crop(one, shape).resize(shape, Image.Resampling.LANCZOS) for one in own]
        assert_encoded(chain, shown, [found[row.Index] for row in of_shape])

    training = chain.finetune_config.model_copy(update={"early_stop": EarlyStop(views=2)})
    one = make_trainer((concept,), (made,), chain.profile, training, chain.store, Runtime(device="cpu"))
    assert one.withheld_loss() > 0
    batches = [one.batch(number) for number in range(72)]
    for views, priors in batches:
        assert len({one.examples.shape(row) for row in (*views.tolist(), *priors.tolist())}) == 1
        assert len(views) == len(priors) == 2
    counts = np.bincount(torch.cat([views for views, _ in batches]))
    assert len(counts) == 6  # the last two are withheld
    assert np.ptp(counts) <= 2  # one of each shape may still be waiting
    seen = np.bincount(torch.cat([priors for _, priors in batches]))[8:]
    assert len(seen) == 72
    for shape in range(3):  # the square has two of the four pictures, and so half of the batches
        assert np.ptp(seen[24 * shape : 24 * shape + 24]) <= 1
    for one.step in range(4):
        assert all(math.isfinite(value) for value in one.train_step())


def test_places_in_a_bucket_reach_its_corners_and_no_further():
    shape = bucket((200, 100), SIDE)
    views = [draw_view(number, 1, AugmentConfig(resolution=SIDE), [shape]) for number in range(4000)]
    for far, name in ((True, "left"), (True, "top"), (False, "left"), (False, "top")):
        some = [one for one in views if (one.scale < PASTE_BELOW * SIDE if far else one.scale > SIDE)]
        axis = 0 if name == "left" else 1
        room = [abs(one.box(SIDE)[axis] - shape[axis]) for one in some]
        places = np.array([getattr(one, name) for one in some]) / room
        assert 0 <= places.min() < 0.02
        assert 0.98 < places.max() <= 1
    for one in views[:200]:
        assert latent_mask(one, SIDE, 64).any()
        assert latent_mask(one, SIDE, 64).shape == (shape[1] // 8, shape[0] // 8)


def test_a_mask_of_a_bucket_lies_where_the_picture_is_pasted():
    shape = bucket((200, 100), 64)
    for one in (View(0, 30, 20, 5, False, "", shape), View(0, 30, 3, 40, True, "", shape)):
        shown = np.asarray(render_view(Image.new("RGB", (200, 100), "red"), one, 64)).astype(int)
        red = (shown == (255, 0, 0)).all(axis=-1)
        mask = latent_mask(one, 64, 16)
        assert mask.any()
        assert red[np.kron(mask, np.ones((4, 4))).astype(bool)].all()
        left = Image.new("RGB", (200, 100), "black")
        left.paste("white", (0, 0, 100, 100))
        narrowed = np.nonzero(opaque_mask(left, one, mask, 64))[1]
        middle = (one.left + one.box(64)[0] / 2) / 4
        assert (narrowed >= middle - 1).all() if one.flip else (narrowed <= middle).all()


def test_concepts_of_several_shapes_are_seen_equally_often():
    wide, square, tall = (
        Latents(torch.zeros(6, *size), torch.zeros(6, *size), torch.ones(1, *size))
        for size in ((8, 16), (12, 12), (16, 8))
    )
    latents = [square] * 10 + [square] * 2 + [tall] * 6 + [wide] + [square] * 4 + [tall] * 4 + [wide] * 4
    examples = Examples(latents, [""] * 19, None, 1.0, views=[range(10), range(10, 19)], priors=[range(19, 31)])
    drawn = batches(examples, 3, 0, priors=True)
    made = [next(drawn) for _ in range(120)]
    assert all(len({examples.shape(row) for row in torch.cat(both).tolist()}) == 1 for both in made)
    counts = np.bincount(torch.cat([views for views, _ in made]), minlength=19)
    assert abs(counts[:10].sum() - counts[10:].sum()) <= 6
    assert np.ptp(counts[:10]) <= 2
    assert np.ptp(counts[10:]) <= 3
    again = batches(examples, 3, 0, priors=True)
    assert all(torch.equal(one, other) for both in made for one, other in zip(both, next(again), strict=True))


def test_a_shape_without_regularization_images_is_refused(chain, make_concept):
    folder = make_concept(pictures=0)
    for number in range(4):
        Image.effect_noise((120, 60), 80).save(folder / "images" / f"{number}.png")
    concept, config = concepts.load_folder(folder), AugmentConfig(resolution=64, views=4, aspect_buckets=True)
    bare = augment(concept, None, chain.profile, config, store=chain.store)
    with pytest.raises(TrainingError, match=r"none of the shape \(6, 12, 22\) that some views have"):
        make_trainer(
            (chain.concept, concept), (chain.training_set, bare), chain.profile, chain.finetune_config, chain.store,
            Runtime(device="cpu"),
        )  # fmt: skip


def test_a_resolution_that_gives_no_whole_latents_is_refused():
    with pytest.raises(ValidationError, match=r"found 520 with aspect buckets, need a multiple of 64"):
        AugmentConfig(resolution=520, aspect_buckets=True)
    assert AugmentConfig(resolution=520).resolution == 520


def test_a_training_set_of_an_earlier_version_is_named(store):
    def produce(folder):
        return tables.write(
            folder / "examples.parquet", [{"role": "concept", "prompt": "", "prefix": "", "latent_row": 0}]
        )

    old = store.make(Recipe(kind="training_set", inputs={}, config={}, code="", versions={}), produce)
    with pytest.raises(TrainingError, match=rf"training set {old.key}: found no column height, need .*; augment again"):
        results.views(old, store)
