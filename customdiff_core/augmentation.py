"""Augment: the paper's random resizes with matching words, made once into a training set of latents (section 3.2).

With S the resolution, a concept picture is resized to U{S/3..S} two times out of three and to U[1.2 S, 1.4 S) otherwise.
Below 0.6 S it is pasted at a random place on an empty canvas and called "a far away" or "very small"; above S it is
cropped and called "zoomed in" or "close up". The loss of a pasted view is masked to the pasted box.

The paper's canvas says nothing of what surrounds a far thing, and nothing of it is learnt. Where a picture's border has one
colour it is known how the picture goes on: with `flat_canvas` the canvas has that colour, and the loss counts all over.

Where a picture has captions of its own, its views take turns between them and the instance prompt, which the paper has alone:
a background that is named is not learnt as part of V*, and V* not as a thing of that background where it is sometimes not.

A training image is square, as in the paper, or with aspect buckets the nearest to its picture's shape of a few of about equal
area; what is said of S then holds for both of its sides.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from customdiff_core import images, stages, tables
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.concepts import Concept
from customdiff_core.config import AugmentConfig, Runtime
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, part_of, silent
from customdiff_core.seeding import numpy_rng
from customdiff_core.training_set import LATENTS, Size

FAR = ("a far away ", "very small ")
NEAR = ("zoomed in ", "close up ")
PASTE_BELOW = 0.6  # of the resolution
EMPTY = (127, 127, 127)  # mid-grey, which is zero for the VAE
FLAT = 3  # levels of 255 by which a border of one colour may differ from it
RATIOS = (1 / 2, 2 / 3, 3 / 4, 1, 4 / 3, 3 / 2, 2)  # of a bucket's width to its height
Mask = npt.NDArray[np.float32]
Colour = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """How one augmented view is made of a picture; lengths in pixels of the training image.

    `scale` is the size of the whole picture where the resolution is that of the training image; `shape` is the training
    image's width and height, None for the square; `turn` says by which of its picture's captions it is told.
    """

    picture: int
    scale: int
    top: int
    left: int
    flip: bool
    prefix: str
    shape: Size | None = None
    turn: int = 0

    def canvas(self, side: int) -> Size:
        """Width and height of the training image at resolution `side`."""
        return self.shape or (side, side)

    def box(self, side: int) -> Size:
        """Width and height of the whole picture, resized."""
        width, height = self.canvas(side)
        return round(width * self.scale / side), round(height * self.scale / side)


def bucket(size: Size, side: int) -> Size:
    """The shape of a training image for a picture: width and height in eighths of `side`, their product about side²."""
    width, height = size
    step, made = side // 8, [(round(8 * math.sqrt(ratio)), round(8 / math.sqrt(ratio))) for ratio in RATIOS]
    wide, high = min(made, key=lambda one: abs(math.log(one[0] / one[1]) - math.log(width / height)))
    return step * wide, step * high


def draw_view(number: int, pictures: int, config: AugmentConfig, shapes: Sequence[Size] = ()) -> View:
    """Draw the parameters of view `number`; pictures take turns, then captions do, so that each is seen equally often.

    Args:
        number: which view; the same number gives the same view.
        pictures: how many the concept has.
        config: the resolution, the distribution and the seed.
        shapes: the pictures' buckets; without any, all are square.
    """
    rng = numpy_rng("view", config.seed, number)
    side, (turn, picture) = config.resolution, divmod(number, pictures)
    shape = shapes[picture] if shapes else None
    if not config.random_resize:
        return View(picture, side, 0, 0, bool(rng.random() < config.flip_probability), "", shape, turn)
    if rng.random() < config.resize_probability:
        scale = int(rng.integers(math.ceil(side / 3), side + 1))
    else:
        scale = int(rng.integers(math.ceil(1.2 * side), math.ceil(1.4 * side)))
    placed = scale < PASTE_BELOW * side or scale > side
    plain = View(picture, scale, 0, 0, False, "", shape, turn)
    across, down = (
        abs(length - whole) if placed else 0 for length, whole in zip(plain.box(side), plain.canvas(side), strict=True)
    )
    top, left = (int(place) for place in rng.integers(0, (down + 1, across + 1)))
    words = FAR if scale < PASTE_BELOW * side else NEAR if scale > side else ("",)
    prefix = words[int(rng.integers(len(words)))]
    return dataclasses.replace(
        plain, top=top, left=left, flip=bool(rng.random() < config.flip_probability), prefix=prefix
    )


def border_colour(picture: Image.Image, shape: Size) -> Colour | None:
    """The one colour of an RGB picture's border, cropped to the proportions of a shape; None where it has several."""
    pixels = np.asarray(images.center_crop(picture, shape)).astype(int)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(border, axis=0).round().astype(int)
    return tuple(colour.tolist()) if (np.abs(border - colour) <= FLAT).all() else None


def render_view(picture: Image.Image, view: View, side: int, empty: Colour = EMPTY) -> Image.Image:
    """Make a view: RGB of its shape. Pasted views lie on a canvas of this colour."""
    width, height = view.canvas(side)
    whole = images.center_crop(picture, (width, height))
    if view.flip:
        whole = ImageOps.mirror(whole)
    if view.scale < PASTE_BELOW * side:
        pasted = Image.new("RGB", (width, height), empty)
        pasted.paste(whole.resize(view.box(side), Image.Resampling.LANCZOS), (view.left, view.top))
        return pasted
    if view.scale > side:
        large = whole.resize(view.box(side), Image.Resampling.LANCZOS)
        return large.crop((view.left, view.top, view.left + width, view.top + height))
    return whole.resize((width, height), Image.Resampling.LANCZOS)


def latent_mask(view: View, side: int, cells: int, known: bool = False) -> Mask:
    """Where the loss of a view counts: (h, w) of 0 and 1, `cells` of them along the resolution.

    All over where the canvas is `known`, a picture's own border going on in it. Else a pasted box is measured in latent
    cells and eroded by one on each side, since its border cells also see the canvas; a box too small for that keeps its
    middle cell, so that a mask is never empty (a 0/0 in the loss).
    """
    (width, height), (wide, high) = view.canvas(side), view.box(side)
    per_pixel = cells / side
    across, down = round(width * per_pixel), round(height * per_pixel)
    if known or view.scale >= PASTE_BELOW * side:
        return np.ones((down, across), np.float32)
    mask = np.zeros((down, across), np.float32)
    mask[_eroded(view.top, high, per_pixel, down), _eroded(view.left, wide, per_pixel, across)] = 1
    return mask


def opaque_mask(alpha: Image.Image, view: View, mask: Mask, side: int) -> Mask:
    """Narrow a view's mask to the cells that are mostly opaque in its picture; a mask that would be empty stays."""
    rendered = render_view(alpha, view, side, (0, 0, 0)).resize((mask.shape[1], mask.shape[0]), Image.Resampling.BOX)
    narrowed = mask * (np.asarray(rendered, np.float32)[..., 0] > 127)
    return narrowed if narrowed.any() else mask


def _eroded(start: int, length: int, per_pixel: float, cells: int) -> slice:
    first, last = math.ceil(start * per_pixel) + 1, math.floor((start + length) * per_pixel) - 1
    if last > first:
        return slice(first, last)
    middle = min(cells - 1, int((start + length / 2) * per_pixel))
    return slice(middle, middle + 1)


def augment(
    concept: Concept,
    regularization: Artifact | None,
    profile: Profile,
    config: AugmentConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Artifact:
    """Make the training set: the concept's views and the regularization images, if any, with prompts, masks, VAE latents.

    Returns:
        A `training_set` artifact. examples.parquet has one row a view or regularization image, the latter once in every
        shape that the views have; latents.safetensors has, by shape, `mean` and `logvar` (N, C, h, w) of every row, so
        that training draws fresh latents without the VAE, and `mask` (N, 1, h, w).

    Raises:
        ImageError, WeightsError: naming the file.
    """

    def produce(folder: Path) -> int:
        from customdiff_core.latents import encode_latents, save_latents

        files = [concept.read(picture) for picture in concept.images]
        pictures = [images.decode(data, picture.name) for data, picture in zip(files, concept.images, strict=True)]
        alphas = [images.opacity(data) if config.alpha_masks else None for data in files]
        side = config.resolution
        shapes = [bucket(one.size, side) for one in pictures] if config.aspect_buckets else []
        views = [draw_view(number, len(pictures), config, shapes) for number in range(config.views)]
        borders = [
            border_colour(one, shapes[number] if shapes else (side, side)) if config.flat_canvas else None
            for number, one in enumerate(pictures)
        ]
        rendered = [render_view(pictures[view.picture], view, side, borders[view.picture] or EMPTY) for view in views]
        prior = tables.read(store, regularization, "regularization").to_dict("records") if regularization else []
        regular = [images.open_trusted(hit["image"]) for hit in prior]

        by_shape: dict[Size, list[int]] = {}
        for number, view in enumerate(views):
            by_shape.setdefault(view.canvas(side), []).append(number)
        total = len(views) + len(by_shape) * len(regular)
        encoded: dict[Size, tuple[Mask, Mask, Mask]] = {}
        view_rows: dict[int, tables.Row] = {}
        prior_rows: list[tables.Row] = []
        for shape, members in by_shape.items():
            whole = [images.center_crop(one, shape).resize(shape, Image.Resampling.LANCZOS) for one in regular]
            batch, before = [rendered[number] for number in members] + whole, len(view_rows) + len(prior_rows)
            mean, logvar = encode_latents(batch, profile.model, runtime, part_of(progress, before, total))
            cells = round(mean.shape[-1] * side / shape[0])
            masks = [
                _mask(view, alphas[view.picture], side, cells, borders[view.picture] is not None)
                for view in (views[number] for number in members)
            ]
            masks += [np.ones_like(masks[0])] * len(whole)
            encoded[shape] = (mean, logvar, np.stack(masks)[:, None])
            for row, number in enumerate(members):
                view_rows[number] = _view_row(concept, views[number], rendered[number], row)
            prior_rows += [_prior_row(hit, shape, row) for row, hit in enumerate(prior, len(members))]
        save_latents(folder / LATENTS, encoded)
        return tables.write(
            folder / "examples.parquet", [*(view_rows[number] for number in range(len(views))), *prior_rows]
        )

    return store.make(stages.augment(concept, regularization, profile, config), produce)


def _mask(view: View, alpha: Image.Image | None, side: int, cells: int, known: bool) -> Mask:
    mask = latent_mask(view, side, cells, known)
    return mask if alpha is None else opaque_mask(alpha, view, mask, side)


def prompt_of(view: View, concept: Concept) -> str:
    """What a view is told by: size first, in an article's place where the words begin with one ("a far away V* cat")."""
    told = (concept.instance_prompt, *concept.images[view.picture].captions)
    words = told[view.turn % len(told)]
    return concept.with_concept(view.prefix + (re.sub(r"^an? ", "", words) if view.prefix else words))


def _view_row(concept: Concept, view: View, image: Image.Image, row: int) -> tables.Row:
    return {
        "role": "concept",
        "concept": concept.name,
        "source_sha256": concept.images[view.picture].sha256,
        "prompt": prompt_of(view, concept),
        "scale": view.scale,
        "top": view.top,
        "left": view.left,
        "flip": view.flip,
        "prefix": view.prefix,
        "width": image.width,
        "height": image.height,
        "latent_row": row,
        "image": images.encode(image),
    }


def _prior_row(hit: dict[Any, Any], shape: Size, row: int) -> tables.Row:
    return {
        "role": "regularization",
        "concept": "",
        "source_sha256": hit["source_sha256"],
        "prompt": hit["caption"],
        "scale": 0,
        "top": 0,
        "left": 0,
        "flip": False,
        "prefix": "",
        "width": shape[0],
        "height": shape[1],
        "latent_row": row,
        "image": None,
    }
