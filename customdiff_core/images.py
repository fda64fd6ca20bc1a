"""Reading pictures that nobody vouches for, and writing them as bytes.

A picture is opened by content, in the listed formats only, its size is checked before a pixel is decoded, and the
result is always RGB, upright, 8 bits: EXIF orientation is applied, transparency lies on white, 16 bits become 8.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from customdiff_core.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
MAX_BYTES = 64 * 1024**2
MAX_PIXELS = 80_000_000
MIN_SIDE = 16
LONGEST_NAME = 500  # characters of a path in an error
RECIPE = "customdiff"  # the PNG text that says how an image was made


def read_picture(path: Path, folder: Path) -> bytes:
    """Return a picture file's bytes, once it is known to lie in the folder and to be of a sane size.

    Raises:
        ImageError: for a link that leaves the folder, a file too large, or one that cannot be read.
    """
    try:
        place = path.resolve()
        if not place.is_relative_to(folder.resolve()):
            raise ImageError(f"{path}: found a link to {place}, need a picture inside {folder}; copy it there")
        if place.exists() and not place.is_file():  # reading a pipe would wait for ever
            raise ImageError(f"{path}: found no regular file, need a readable picture; remove it")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(f"{path}: found {size:,} bytes, need at most {MAX_BYTES:,}; save it smaller")
        return path.read_bytes()
    except RuntimeError as error:  # a link to itself, until Python 3.12
        raise ImageError(f"{path}: found a link to itself, need a readable picture; remove it") from error
    except OSError as error:
        raise ImageError(f"{str(path)[:LONGEST_NAME]}: found {error.strerror}, need a readable picture") from error
    except ValueError as error:  # a name with a NUL
        raise ImageError(f"{str(path)!r}: found {error}, need the name of a file") from error


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a file is there and, links followed, inside the folder."""
    try:
        return path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a name too long, a link to itself, a NUL
        return False


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture's bytes into an upright 8-bit RGB image.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
        max_pixels: the largest width x height.

    Raises:
        ImageError: if it is no picture, truncated, too large to decode (a bomb) or too small to learn from.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning: the limit below is stricter
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: found a decompression bomb ({error}), need at most {max_pixels:,} pixels") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{name}: found no picture, need one of {', '.join(FORMATS)}; convert or remove it") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: found {width} x {height} pixels (a decompression bomb?), need at most {max_pixels:,}; scale it down"
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name}: found {width} x {height} pixels, need at least {MIN_SIDE} a side; use a larger picture"
        )
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, IndexError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{name}: found a truncated or damaged picture ({error}), need a whole one; copy it again"
        ) from error


def opacity(data: bytes) -> Image.Image | None:
    """Return the alpha channel of a picture that `decode` took, upright, as RGB: white where it is opaque; None without one."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if "A" not in image.getbands() and "transparency" not in image.info:
        return None
    return ImageOps.exif_transpose(image.convert("RGBA")).getchannel("A").convert("RGB")


def center_crop(image: Image.Image, shape: tuple[int, int] = (1, 1)) -> Image.Image:
    """Return the largest centred part of a shape, width : height; squashing would teach the concept wrong proportions."""
    width, height = shape
    scale = min(image.width / width, image.height / height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    return image.crop((left, top, left + wide, top + high))


def encode(image: Image.Image, recipe: Mapping[str, Any] | None = None, *, effort: int = 6) -> bytes:
    """Encode losslessly, and equally on every run.

    Args:
        image: the picture.
        recipe: how it was made; goes into the PNG's text, as JSON.
        effort: an effort of 1 takes a sixth of the time of 6, and a sixth more bytes.
    """
    buffer = io.BytesIO()
    notes = PngInfo()
    if recipe is not None:
        notes.add_text(RECIPE, json.dumps(recipe))
    image.save(buffer, format="PNG", pnginfo=notes, compress_level=effort)
    return buffer.getvalue()


def recipe_of(data: bytes) -> dict[str, Any]:
    """Return how an image of this project was made.

    Raises:
        ImageError: if it does not say.
    """
    found = getattr(Image.open(io.BytesIO(data), formats=("PNG",)), "text", {}).get(RECIPE)
    if found is None:
        raise ImageError(f"picture: found no {RECIPE} text in it, need a PNG drawn by this program")
    return json.loads(found)


def open_trusted(data: bytes) -> Image.Image:
    """Open an image that this project wrote itself."""
    return Image.open(io.BytesIO(data), formats=("PNG",)).convert("RGB")


def digest(data: bytes) -> str:
    """SHA-256 of a picture's bytes."""
    return hashlib.sha256(data).hexdigest()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16- and 32-bit greyscale to 8 bits by scaling; Pillow's own conversion clips everything above 255 to white."""
    values = np.asarray(image, dtype=np.float64)
    deepest = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
    return Image.fromarray(np.clip(values * (255.0 / max(deepest, values.max(initial=1))), 0, 255).astype(np.uint8))
