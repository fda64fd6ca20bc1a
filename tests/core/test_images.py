import contextlib
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from customdiff_core import images
from customdiff_core.errors import ImageError


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 48, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that say they are a picture of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 100)) + chunk(b"IEND", b"")
    )


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# Bad pictures


def test_text_named_jpg_is_no_picture():
    with pytest.raises(ImageError) as error:
        images.decode(b"just some words", "cup.jpg")
    assert str(error.value) == (
        "cup.jpg: found no picture, need one of PNG, JPEG, WEBP, BMP, TIFF, GIF; convert or remove it"
    )


def test_a_format_that_is_not_listed_is_refused_whatever_its_suffix():
    with pytest.raises(ImageError, match=r"cup\.png: found no picture, need one of PNG"):
        images.decode(encoded(noise(), "PPM"), "cup.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_picture_is_named(kind: str):
    data = encoded(noise(200, 200), kind)
    with pytest.raises(
        ImageError, match=r"^cup: found a truncated or damaged picture \(.+\), need a whole one; copy it again$"
    ):
        images.decode(data[: len(data) // 2], "cup")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=3))
def test_damaged_bytes_give_a_picture_or_an_image_error(kind: str, share: float, flips: list[tuple[float, int]]):
    data = bytearray(encoded(noise(), kind))
    for place, change in flips:
        data[int(place * len(data))] ^= change
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own words on damaged metadata
        with contextlib.suppress(ImageError):  # any other error leaves the block
            assert images.decode(bytes(data[: int(share * len(data))]), "cup").mode == "RGB"


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 8_500)])
def test_a_decompression_bomb_is_refused_before_a_pixel_is_decoded(size: tuple[int, int]):
    data = huge_png(*size)
    assert len(data) < 200
    with pytest.raises(ImageError, match=r"^bomb: found .*decompression bomb.*, need at most 80,000,000"):
        images.decode(data, "bomb")


def test_a_tiny_picture_is_refused():
    with pytest.raises(ImageError) as error:
        images.decode(encoded(Image.new("RGB", (100, 15))), "cup")
    assert str(error.value) == "cup: found 100 x 15 pixels, need at least 16 a side; use a larger picture"


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path):
    folder = tmp_path / "concept"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(noise()))
    (folder / "cup.png").symlink_to("../secret.png")
    with pytest.raises(ImageError) as error:
        images.read_picture(folder / "cup.png", folder)
    assert str(error.value) == (
        f"{folder}/cup.png: found a link to {tmp_path}/secret.png, need a picture inside {folder}; copy it there"
    )


def test_a_link_inside_the_folder_is_followed(tmp_path: Path):
    (tmp_path / "one.png").write_bytes(b"data")
    (tmp_path / "two.png").symlink_to("one.png")
    assert images.read_picture(tmp_path / "two.png", tmp_path) == b"data"


def test_a_link_to_itself_is_an_image_error(tmp_path: Path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(ImageError, match=r"loop\.png: found .*need a readable picture(; remove it)?$"):
        images.read_picture(tmp_path / "loop.png", tmp_path)


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "a\0.png"])
def test_a_name_that_no_file_has_is_an_image_error(tmp_path: Path, name: str):
    with pytest.raises(ImageError, match=r"found (File name too long|embedded null|lstat: embedded null)"):
        images.read_picture(tmp_path / name, tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"pipe\.png: found no regular file, need a readable picture; remove it"):
        images.read_picture(tmp_path / "pipe.png", tmp_path)


def test_a_file_too_large_is_not_read(tmp_path: Path):
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # sparse: takes no disk
    with pytest.raises(
        ImageError, match=r"large\.png: found 67,108,865 bytes, need at most 67,108,864; save it smaller"
    ):
        images.read_picture(tmp_path / "large.png", tmp_path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ImageError, match=r"none\.png: found No such file or directory, need a readable picture"):
        images.read_picture(tmp_path / "none.png", tmp_path)


def test_only_a_file_inside_the_folder_lies_in_it(tmp_path: Path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "one.png").write_bytes(b"data")
    (tmp_path / "secret.png").write_bytes(b"data")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "loop.png").symlink_to("loop.png")
    assert images.lies_in(folder / "inner" / "one.png", folder)
    for name in ("none.png", "inner", "out.png", "../secret.png", "loop.png", "a" * 300, "a\0.png"):
        assert not images.lies_in(folder / name, folder)


# Every kind of picture becomes upright 8-bit RGB


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 0)), (6, (0, 1)), (8, (1, 0))]
)
def test_exif_orientation_is_applied(orientation: int, corner: tuple[int, int]):
    picture = Image.new("RGB", (64, 32))
    picture.paste((255, 255, 255), (0, 0, 16, 8))  # white top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = images.decode(encoded(picture, "JPEG", exif=exif, quality=95), "cup")
    assert image.size == ((32, 64) if orientation > 4 else (64, 32))
    corners = as_array(image.resize((2, 2), Image.Resampling.BOX))[..., 0]
    assert np.unravel_index(corners.argmax(), corners.shape) == corner
    assert image.getexif().get(0x0112, 1) == 1  # nobody turns it a second time


def test_transparency_lies_on_white():
    picture = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 16, 32))
    picture.paste((0, 0, 0, 128), (16, 0, 32, 16))
    pixels = as_array(images.decode(encoded(picture), "cup"))
    assert pixels[31, 31].tolist() == [255, 255, 255]
    assert pixels[31, 0].tolist() == [0, 0, 255]
    assert pixels[0, 31] == pytest.approx([127, 127, 127], abs=1)


def test_grey_with_alpha_lies_on_white():
    pixels = as_array(images.decode(encoded(Image.new("LA", (32, 32), (10, 0))), "cup"))
    assert (pixels == 255).all()


def test_a_palette_with_a_transparent_colour_lies_on_white():
    picture = Image.new("P", (32, 32), 0)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.paste(1, (0, 0, 16, 32))
    pixels = as_array(images.decode(encoded(picture, transparency=0), "cup"))
    assert pixels[0, 0].tolist() == [0, 255, 0]
    assert pixels[0, 31].tolist() == [255, 255, 255]


def test_a_colour_key_lies_on_white():
    picture = Image.new("RGB", (32, 32), (1, 2, 3))
    picture.paste((200, 0, 0), (0, 0, 16, 32))
    pixels = as_array(images.decode(encoded(picture, transparency=(1, 2, 3)), "cup"))
    assert pixels[0, 31].tolist() == [255, 255, 255]
    assert pixels[0, 0].tolist() == [200, 0, 0]


def test_greyscale_and_cmyk_become_rgb():
    assert as_array(images.decode(encoded(Image.new("L", (32, 32), 77)), "cup"))[0, 0].tolist() == [77, 77, 77]
    cyan = images.decode(encoded(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG", quality=95), "cup")
    assert as_array(cyan)[16, 16] == pytest.approx([0, 255, 255], abs=6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    picture = Image.fromarray(np.tile(ramp, (32, 1)))
    assert picture.mode == "I;16"
    row = as_array(images.decode(encoded(picture, kind), "cup"))[0, :, 0]
    assert np.abs(row - ramp / 257).max() <= 1


def test_a_dark_16_bit_picture_stays_dark():
    picture = Image.fromarray(np.full((32, 32), 200, np.uint16))
    assert as_array(images.decode(encoded(picture), "cup")).max() <= 1


def test_black_and_white_becomes_rgb():
    picture = Image.new("1", (32, 32), 1)
    assert as_array(images.decode(encoded(picture), "cup"))[0, 0].tolist() == [255, 255, 255]


@settings(max_examples=25, deadline=None)
@given(width=st.integers(16, 90), height=st.integers(16, 90))
def test_any_shape_is_kept_and_its_largest_square_is_centred(width: int, height: int):
    image = images.decode(encoded(noise(width, height)), "cup")
    assert (image.mode, image.size) == ("RGB", (width, height))
    side, square = min(width, height), images.center_crop(image)
    assert square.size == (side, side)
    left, top = (width - side) // 2, (height - side) // 2
    assert np.array_equal(np.asarray(square), np.asarray(image)[top : top + side, left : left + side])


def test_encoding_is_lossless_and_repeats():
    image = noise()
    data = images.encode(image)
    assert data == images.encode(image.copy())
    assert np.array_equal(np.asarray(images.open_trusted(data)), np.asarray(image))


def test_what_this_project_wrote_is_a_png():
    with pytest.raises(OSError, match="cannot identify"):
        images.open_trusted(encoded(noise(), "JPEG"))


def test_the_digest_is_of_the_bytes():
    assert images.digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_picture_carries_how_it_was_made_and_stays_the_same_picture():
    image = Image.new("RGB", (16, 16), "red")
    recipe = {"prompt": "a cät", "seed": 3, "guidance_scale": 7.5}
    data = images.encode(image, recipe)
    assert images.recipe_of(data) == recipe
    assert images.encode(image, recipe) == data
    assert images.open_trusted(data).tobytes() == image.tobytes()
    with pytest.raises(ImageError, match="picture: found no customdiff text in it, need a PNG drawn by this program"):
        images.recipe_of(images.encode(image))


def test_opacity_is_the_alpha_channel_upright():
    image = Image.new("RGBA", (20, 16), (255, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 10, 16))
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(buffer, "PNG", exif=exif)
    alpha = images.opacity(buffer.getvalue())
    assert alpha is not None
    assert alpha.size == images.decode(buffer.getvalue(), "x").size == (16, 20)
    values = np.asarray(alpha)[..., 0]
    assert (values[:10] == 255).all()
    assert (values[10:] == 0).all()
    assert images.opacity(images.encode(Image.new("RGB", (16, 16)))) is None
