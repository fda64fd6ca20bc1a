import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from customdiff_core import concepts, images
from customdiff_core.artifacts import Store
from customdiff_core.config import Runtime
from customdiff_core.evaluation.identity import RATES, colours, colours_of_things, identity, recognised
from customdiff_core.evaluation.judge import Judge
from customdiff_core.profiles import Profile
from customdiff_core.settings import Settings

NAMES = ("cat", "dog", "teddybear", "house", "car", "flower", "chair", "tortoise", "teapot")


def spot(inside: str, background: str) -> Image.Image:
    picture = Image.new("RGB", (64, 64), background)
    ImageDraw.Draw(picture).ellipse([16, 16, 48, 48], fill=inside, outline="black")
    return picture


def test_colours_are_those_of_the_foreground():
    teal, again, red = (colours(spot(*pair)) for pair in (("#3fb8af", "#d33"), ("#3fb8af", "#fff"), ("#d33", "#fff")))
    assert np.linalg.norm(teal) == pytest.approx(1, abs=1e-5)
    assert teal @ again > 0.99
    assert teal @ red < 0.1


def test_black_white_and_grey_are_colours_too():
    white, grey, red = (colours(spot(inside, "#36c")) for inside in ("#ffffff", "#777777", "#d33"))
    assert white @ grey < 0.1
    assert white @ red < 0.1


def test_a_picture_without_foreground_is_nobody():
    empty = colours(Image.new("RGB", (64, 64), "red"))
    assert not empty.any()
    assert recognised(empty[None], colours(spot("red", "white"))[None], colours(spot("blue", "white"))[None]) == [0]


def test_the_nearest_picture_decides():
    seen = np.array([[1, 0], [0, 1], [0.8, 0.6]])
    own, others = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert recognised(seen, own, others).tolist() == [1, 0, 1]


def test_true_pictures_are_the_concepts_and_look_alikes_are_not(store: Store, openmoji: Profile):
    cat = concepts.load("cat")
    shown = [cat.read(cat.held_out[0], "held_out"), cat.read(cat.others[0], "others")]
    found = identity(cat, shown, Judge(openmoji, store, Runtime(device="cpu")))
    assert {name: scores.tolist() for name, scores in found.items()} == {rate: [1.0, 0.0] for rate in RATES}


def test_likeness_to_a_training_picture_counts_for_nothing(store: Store, openmoji: Profile, tmp_path: Path):
    folder = Path(shutil.copytree(Settings().data / "concepts" / "cat", tmp_path / "concepts" / "cat"))
    shutil.copytree(Settings().data / "prompts", tmp_path / "prompts")
    twin = (folder / "others" / "kissing-0.png").rename(folder / "images" / "face.png")
    found = identity(concepts.load_folder(folder), [twin.read_bytes()], Judge(openmoji, store, Runtime(device="cpu")))
    assert {name: scores.tolist() for name, scores in found.items()} == {rate: [0.0] for rate in RATES}


def test_what_stands_beside_the_concept_does_not_count_against_it():
    picture = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse([8, 24, 24, 40], fill="#3fb8af", outline="black")
    draw.ellipse([32, 20, 56, 44], fill="#d33", outline="black")
    draw.point((30, 50), fill="#36c")  # too small to be a thing
    own, red, blue = (colours(spot(inside, "#ffffff"))[None] for inside in ("#3fb8af", "#d33", "#36c"))
    seen = colours_of_things(picture)
    assert [bool(row.any()) for row in seen] == [True, True, True, False, False]
    assert seen[0] @ own[0] < 0.8  # both together are like neither
    assert recognised(seen[None], own, blue) == [1]
    assert recognised(seen[None], blue, own) == [0]
    assert (seen @ red.T).max() > 0.98
    # Nor for a look-alike of its own colour, to which it is nearer than the concept, a little off, is to the concept.
    off = colours(spot("#3fa0c0", "#ffffff"))[None]
    assert 0.4 < (seen @ off.T).max() < (seen @ red.T).max()
    assert recognised(seen[None], off, red) == [1]


def test_a_thing_of_several_parts_is_seen_whole_too():
    picture = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle([16, 8, 48, 28], fill="#3fb8af")
    draw.rectangle([16, 34, 48, 54], fill="#d33")
    together = colours(picture)
    assert recognised(colours_of_things(picture)[None], together[None], colours(spot("#36c", "white"))[None]) == [1]
    assert (colours_of_things(picture) @ together).max() > 0.999


@pytest.mark.parametrize("kind", ["jpeg", "transparent"])
def test_pictures_of_ones_own_are_read_in_any_format(store: Store, openmoji: Profile, tmp_path: Path, kind: str):
    folder = Path(shutil.copytree(Settings().data / "concepts" / "cat", tmp_path / "concepts" / "cat"))
    shutil.copytree(Settings().data / "prompts", tmp_path / "prompts")
    shown = (folder / "held_out").glob("*.png").__next__().read_bytes()
    for path in [*(folder / "held_out").glob("*.png"), *(folder / "others").glob("*.png")]:
        with Image.open(path) as picture:
            if kind == "jpeg":
                picture.convert("RGB").save(path.with_suffix(".jpg"), quality=98)
            else:
                _without_background(picture).save(path.with_suffix(".webp"), lossless=True)
        path.unlink()
    found = identity(concepts.load_folder(folder), [shown], Judge(openmoji, store, Runtime(device="cpu")))
    assert found["recognised_by_colour"].tolist() == [1]


def _without_background(picture: Image.Image) -> Image.Image:
    pixels = np.asarray(picture.convert("RGBA")).copy()
    pixels[(pixels == pixels[0, 0]).all(axis=-1), 3] = 0
    return Image.fromarray(pixels)


def test_a_change_that_nobody_sees_changes_little():
    """Ruby and petrol lie where two hues meet: a few of 255 must not make another colour of them."""
    for seen, again in (("#c2185b", "#c2165d"), ("#0f6e72", "#0f6a76"), ("#ff0000", "#ff0404"), ("#ff0000", "#ff0004")):
        pair = [colours(spot(inside, "#ffffff")) for inside in (seen, again)]
        assert pair[0] @ pair[1] > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_true_pictures_a_little_off_are_still_told_apart(name: str):
    """Each held-out view against all other views, so that no picture meets itself."""
    concept = concepts.load(name)

    def palettes(folder: str, change: int = 0) -> dict[str, np.ndarray]:
        group = {"held_out": concept.held_out, "others": concept.others}[folder]
        pixels = {
            one.name.removesuffix(".png"): np.asarray(images.open_trusted(concept.read(one, folder)).convert("RGB"))
            for one in group
        }
        shift = np.array([0, -change, change])
        return {
            view: colours(Image.fromarray((one + shift).clip(0, 255).astype(np.uint8))) for view, one in pixels.items()
        }

    own, others = palettes("held_out"), palettes("others")
    for change in (2, 4):
        for view, drawn in palettes("held_out", change).items():
            rest = np.stack([palette for other, palette in own.items() if other != view])
            twins = np.stack([palette for other, palette in others.items() if other.rsplit("-", 1)[0] != view])
            assert recognised(drawn[None], rest, twins) == [1], view


@pytest.mark.parametrize("name", NAMES)
def test_true_pictures_are_told_from_look_alikes_by_their_colours(name: str):
    """The witness itself: each training picture against the held-out ones and their look-alikes."""
    concept = concepts.load(name)

    def palette(folder: str) -> np.ndarray:
        group = {"images": concept.images, "held_out": concept.held_out, "others": concept.others}[folder]
        return np.stack([colours(images.open_trusted(concept.read(one, folder))) for one in group])

    assert len(concept.others) == 5 * len(concept.held_out)
    assert recognised(palette("images"), palette("held_out"), palette("others")).mean() >= 0.8
