"""Augment: the paper's random resizes with matching words, made once into a training set of latents (section 3.2).

With S the resolution, a concept picture is resized to U{S/3..S} two times out of three and to U[1.2 S, 1.4 S) otherwise.
Below 0.6 S it is pasted at a random place on an empty canvas and called "a far away" or "very small"; above S it is
cropped and called "zoomed in" or "close up". The loss of a pasted view is masked to the pasted box.
"""

import math
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
from customdiff_core.progress import Progress, silent
from customdiff_core.seeding import numpy_rng

FAR = ("a far away ", "very small ")
NEAR = ("zoomed in ", "close up ")
PASTE_BELOW = 0.6  # of the resolution
Mask = npt.NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """How one augmented view is made of a picture; lengths in pixels of the training image."""

    picture: int
    scale: int
    top: int
    left: int
    flip: bool
    prefix: str


def draw_view(number: int, pictures: int, config: AugmentConfig) -> View:
    """Draw the parameters of view `number`; the pictures take turns, so that each is seen equally often."""
    rng = numpy_rng("view", config.seed, number)
    side = config.resolution
    if not config.random_resize:
        return View(number % pictures, side, 0, 0, bool(rng.random() < config.flip_probability), "")
    if rng.random() < config.resize_probability:
        scale = int(rng.integers(math.ceil(side / 3), side + 1))
    else:
        scale = int(rng.integers(math.ceil(1.2 * side), math.ceil(1.4 * side)))
    room = abs(side - scale) if scale < PASTE_BELOW * side or scale > side else 0
    top, left = (int(place) for place in rng.integers(0, room + 1, size=2))
    words = FAR if scale < PASTE_BELOW * side else NEAR if scale > side else ("",)
    prefix = words[int(rng.integers(len(words)))]
    return View(number % pictures, scale, top, left, bool(rng.random() < config.flip_probability), prefix)


def render_view(picture: Image.Image, view: View, side: int, empty: int = 127) -> Image.Image:
    """Make a view: (side, side) RGB. Pasted views lie on mid-grey, which is zero for the VAE: an empty canvas."""
    square = images.center_crop(picture)
    if view.flip:
        square = ImageOps.mirror(square)
    if view.scale < PASTE_BELOW * side:
        canvas = Image.new("RGB", (side, side), (empty, empty, empty))
        canvas.paste(square.resize((view.scale, view.scale), Image.Resampling.LANCZOS), (view.left, view.top))
        return canvas
    if view.scale > side:
        large = square.resize((view.scale, view.scale), Image.Resampling.LANCZOS)
        return large.crop((view.left, view.top, view.left + side, view.top + side))
    return square.resize((side, side), Image.Resampling.LANCZOS)


def latent_mask(view: View, side: int, cells: int) -> Mask:
    """Where the loss of a view counts: (cells, cells) of 0 and 1.

    A pasted box is measured in latent cells and eroded by one on each side, since its border cells also see the canvas;
    a box too small for that keeps its middle cell, so that a mask is never empty (a 0/0 in the loss).
    """
    if view.scale >= PASTE_BELOW * side:
        return np.ones((cells, cells), np.float32)
    mask = np.zeros((cells, cells), np.float32)
    rows, columns = (_eroded(start, view.scale, cells / side, cells) for start in (view.top, view.left))
    mask[rows, columns] = 1
    return mask


def opaque_mask(alpha: Image.Image, view: View, mask: Mask, side: int) -> Mask:
    """Narrow a view's mask to the cells that are mostly opaque in its picture; a mask that would be empty stays."""
    rendered = render_view(alpha, view, side, empty=0).resize((mask.shape[1], mask.shape[0]), Image.Resampling.BOX)
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
        A `training_set` artifact. examples.parquet has one row a view or regularization image; latents.safetensors
        has `mean` and `logvar` (N, 4, h, w) of every row, so that training draws fresh latents without the VAE, and
        `mask` (N, 1, h, w).

    Raises:
        ImageError, WeightsError: naming the file.
    """

    def produce(folder: Path) -> int:
        from customdiff_core.latents import encode_latents, save_latents

        files = [concept.read(picture) for picture in concept.images]
        pictures = [images.decode(data, picture.name) for data, picture in zip(files, concept.images, strict=True)]
        alphas = [images.opacity(data) if config.alpha_masks else None for data in files]
        views = [draw_view(number, len(pictures), config) for number in range(config.views)]
        side = config.resolution
        rendered = [render_view(pictures[view.picture], view, side) for view in views]
        prior = tables.read(store, regularization, "regularization").to_dict("records") if regularization else []
        regular = [_square(images.open_trusted(hit["image"]), side) for hit in prior]
        mean, logvar = encode_latents(rendered + regular, profile.model, runtime, progress)
        masks = [_mask(view, alphas[view.picture], side, mean.shape[-1]) for view in views]
        masks += [np.ones_like(masks[0])] * len(regular)
        save_latents(folder / "latents.safetensors", mean, logvar, np.stack(masks)[:, None])
        rows = [
            _view_row(concept, view, image, row) for row, (view, image) in enumerate(zip(views, rendered, strict=True))
        ]
        rows += [_prior_row(hit, row) for row, hit in enumerate(prior, len(views))]
        return tables.write(folder / "examples.parquet", rows)

    return store.make(stages.augment(concept, regularization, profile, config), produce)


def _mask(view: View, alpha: Image.Image | None, side: int, cells: int) -> Mask:
    mask = latent_mask(view, side, cells)
    return mask if alpha is None else opaque_mask(alpha, view, mask, side)


def _square(image: Image.Image, side: int) -> Image.Image:
    return images.center_crop(image).resize((side, side), Image.Resampling.LANCZOS)


def _view_row(concept: Concept, view: View, image: Image.Image, row: int) -> tables.Row:
    return {
        "role": "concept",
        "concept": concept.name,
        "source_sha256": concept.images[view.picture].sha256,
        "prompt": concept.with_concept(view.prefix + concept.instance_prompt),
        "scale": view.scale,
        "top": view.top,
        "left": view.left,
        "flip": view.flip,
        "prefix": view.prefix,
        "latent_row": row,
        "image": images.encode(image),
    }


def _prior_row(hit: dict[Any, Any], row: int) -> tables.Row:
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
        "latent_row": row,
        "image": None,
    }
