import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from customdiff_core import concepts
from customdiff_core.errors import WorldError
from customdiff_core.settings import REPOSITORY
from customdiff_core.world.colours import name_of
from customdiff_core.world.drawings import Drawing, layers, load_drawings, render
from customdiff_core.world.scenes import RESERVED
from deployments import ceiling

HEAD = "category,code,words,weight,split,paint"
CONCEPTS = REPOSITORY / "data" / "concepts"
NAMES = ("cat", "dog", "teddybear", "house", "car", "flower", "chair", "tortoise")


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """The program that made the committed pictures."""
    return ceiling.makers()


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def opaque_pixels_of(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((pixels(picture) == (*colour, 255)).all(axis=-1).sum())


def test_a_drawing_is_a_square_with_a_transparent_ground():
    picture = render("1F63A", 48)
    assert (picture.mode, picture.size) == ("RGBA", (48, 48))
    alpha = pixels(picture)[..., 3]
    assert alpha[0, 0] == 0
    assert alpha[30, 24] == 255


@pytest.mark.parametrize("old", ["F4AA41", "#f4aa41", "#F4aA41"])
def test_recolor_paints_the_asked_colour_and_leaves_none_of_the_old(old: str):
    plain, teal = render("1F63A", 64), render("1F63A", 64, {old: "#3fb8af"})
    orange_area = opaque_pixels_of(plain, (0xF4, 0xAA, 0x41))
    assert orange_area > 500
    assert opaque_pixels_of(teal, (0x3F, 0xB8, 0xAF)) == orange_area
    assert opaque_pixels_of(teal, (0xF4, 0xAA, 0x41)) == 0


def test_recolor_reads_short_hex():
    # The cat face's SVG writes its muzzle as #fff.
    white_area = opaque_pixels_of(render("1F431", 64), (255, 255, 255))
    assert white_area > 0
    assert opaque_pixels_of(render("1F431", 64, {"#FFFFFF": "#00f"}), (0, 0, 255)) == white_area


def test_recolor_swaps_at_once():
    orange, rust = (0xF4, 0xAA, 0x41), (0xE2, 0x70, 0x22)
    plain, swapped = render("1F63A", 64), render("1F63A", 64, {"#f4aa41": "#e27022", "#e27022": "#f4aa41"})
    assert opaque_pixels_of(plain, orange) > opaque_pixels_of(plain, rust) > 0
    assert opaque_pixels_of(swapped, rust) == opaque_pixels_of(plain, orange)
    assert opaque_pixels_of(swapped, orange) == opaque_pixels_of(plain, rust)


def test_a_caller_may_draw_on_its_copy():
    render("1F436", 32).paste((1, 2, 3, 255), (0, 0, 32, 32))
    assert opaque_pixels_of(render("1F436", 32), (1, 2, 3)) == 0


@pytest.mark.parametrize("code", ["1F63Z", "FFFFF", "../1F63A", "1f63a", ""])
def test_an_unknown_code_says_what_a_code_looks_like(code: str):
    with pytest.raises(
        WorldError, match=r"drawing: found code '.*', need one of OpenMoji .*such as '1F63A', or of data.*; look"
    ):
        render(code, 32)


def test_other_wrong_arguments_are_named():
    with pytest.raises(WorldError, match="found 0, need at least 1 pixel"):
        render("1F63A", 0)
    with pytest.raises(WorldError, match="colour: found 'teal', need hex"):
        render("1F63A", 32, {"#f4aa41": "teal"})


def test_a_table_of_drawings_is_read_in_order(tmp_path: Path):
    table = tmp_path / "drawings.csv"
    rows = ["pizza,1F355,{},1,train,", "teddy bear,1F9F8,sitting {},2.5,held-out,#a57939+#6a462f"]
    table.write_text("\n".join([HEAD, *rows]), encoding="utf-8")
    assert load_drawings(table) == [
        Drawing("1F355", "pizza", "{}", 1.0),
        Drawing("1F9F8", "teddy bear", "sitting {}", 2.5, held_out=True, paint="#a57939+#6a462f"),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "found 0 rows"),
        (["pizza,1F355,{},0,train,"], "row 2: found 'pizza', '1F355', '{}', '0'"),
        (["pizza,1F355,,1,train,"], "need a category, a code, words with one {}"),
        (["pizza,1F355,{},1,test,"], "train or held-out"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, rows: list[str], message: str):
    table = tmp_path / "drawings.csv"
    table.write_text("\n".join([HEAD, *rows]), encoding="utf-8")
    with pytest.raises(WorldError, match=re.escape(message)):
        load_drawings(table)
    with pytest.raises(WorldError, match="restore it from git"):
        load_drawings(tmp_path / "none.csv")


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_concept_is_what_its_program_makes(maker: ModuleType, name: str):
    made = maker.pictures(maker.SUBJECTS[name])
    committed = {str(file.relative_to(CONCEPTS / name)) for file in (CONCEPTS / name).rglob("*.png")}
    assert set(made) == committed
    for path, picture in made.items():
        file = Image.open(CONCEPTS / name / path)
        side = maker.OTHER_SIDE if path.startswith("others/") else maker.SIDE
        assert (file.mode, file.size) == ("RGB", (side, side))
        # A few levels of slack: another processor may round an outline's pixel differently.
        assert np.abs(pixels(file) - pixels(picture)).max() <= 4, path
    assert (CONCEPTS / name / "ATTRIBUTION.md").read_text(encoding="utf-8") == maker.attribution(maker.SUBJECTS[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_concepts_colouring_is_one_that_no_scene_may_have(maker: ModuleType, name: str):
    """By what its pictures show, not by what a list says: main and second paint of each of its drawings."""
    subject, category = maker.SUBJECTS[name], concepts.load(name).category
    table = {one.code: one for one in load_drawings(CONCEPTS.parent / "world" / "drawings.csv")}
    for code in {view.code for view in subject.images + subject.held_out}:
        parts, recolor = layers(code, table[code].paint), subject.colours(code)
        own = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in (parts.main_colour, parts.second_colour)]
        paints = [recolor.get(one, one) for one in own]
        assert tuple(paints) == subject.paints, code
        pair = tuple(name_of(tuple(int(one[at : at + 2], 16) for at in (1, 3, 5))) for one in paints)
        assert pair in RESERVED[category], code


@pytest.mark.parametrize("name", NAMES)
def test_held_out_views_are_other_views(maker: ModuleType, name: str):
    """Compared on one background: the drawing itself must differ."""
    subject = maker.SUBJECTS[name]
    assert len(subject.images) in range(4, 7)
    assert len(subject.held_out) in range(4, 6)

    def on_white(views: tuple) -> list[np.ndarray]:
        plain = [maker.View(**{**vars(view), "background": "snow"}) for view in views]
        return [pixels(maker.draw(view, subject)) for view in plain]

    training = on_white(subject.images)
    for held_out, view in zip(on_white(subject.held_out), subject.held_out, strict=True):
        assert min(np.abs(held_out - picture).mean() for picture in training) > 1, view.pose


def test_the_cat_is_teal_with_magenta():
    cat = pixels(Image.open(CONCEPTS / "cat" / "images" / "grinning.png"))
    teal = (np.abs(cat - (0x3F, 0xB8, 0xAF)).max(axis=-1) <= 2).mean()
    magenta = (np.abs(cat - (0xD6, 0x33, 0x6C)).max(axis=-1) <= 2).mean()
    assert teal > 0.12
    assert magenta > 0.05


def test_the_committed_teapot_is_what_its_program_makes(maker: ModuleType):
    shot = maker.SHOTS["held_out/side"]
    again = pixels(maker.teapot.draw(maker.OTHER_SIDE, *shot[:3], maker.TEAPOT, shot[3]))
    committed = Image.open(CONCEPTS / "teapot" / "held_out" / "side.png").resize(
        (maker.OTHER_SIDE,) * 2, Image.Resampling.BOX
    )
    assert np.abs(again - pixels(committed)).mean() < 4
    assert len(list((CONCEPTS / "teapot" / "others").glob("*.png"))) == 25


def test_layers_add_up_to_the_drawing():
    for code in ("1F63A", "1F697", "1F436", "26C4"):
        parts = layers(code)
        colours = [np.array(one) / 255 for one in (parts.main_colour, parts.second_colour)]
        again = parts.rest + parts.main[..., None] * colours[0] + parts.second[..., None] * colours[1]
        plain = np.asarray(render(code, 128)).astype(float) / 255
        assert np.abs(again - plain[..., :3] * plain[..., 3:]).mean() < 0.02, code


def test_a_house_is_its_walls_where_the_table_says_so():
    table = {one.code: one for one in load_drawings(CONCEPTS.parent / "world" / "drawings.csv")}
    garden = table["1F3E1"]
    assert name_of(layers(garden.code).main_colour) == "green"
    assert name_of(layers(garden.code, garden.paint).main_colour) == "white"


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ("f4aa41", "orange"), ("e27022", "orange"), ("a57939", "brown"), ("6a462f", "brown"), ("ea5a47", "red"),
        ("fcea2b", "yellow"), ("b1cc33", "green"), ("92d3f5", "blue"), ("b399c8", "purple"), ("ffa7c0", "pink"),
        ("3f3f3f", "black"), ("9b9b9a", "gray"), ("ffffff", "white"),
    ],
)  # fmt: skip
def test_openmojis_own_paints_are_called_as_people_call_them(colour: str, name: str):
    assert name_of((int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:], 16))) == name
