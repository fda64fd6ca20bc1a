"""Pictures of data, shared by the report and the UI: thumbnails, montages and charts that read in light and dark alike.

Everything comes out as a `data:` URI of WebP bytes, equal for equal inputs, so that a page needs no second file.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import get_data_path
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from customdiff_core import images

FONT = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
INK = "#7b828d"  # text and axes: as far from white as from near-black
BASE = "#98a0ac"
CUSTOMIZED = "#2a9d8f"
MARK = "#d1366f"
METRICS = {
    "image_alignment_training": "Image alignment, training pictures",
    "image_alignment_held_out": "Image alignment, held-out pictures",
    "dino_alignment_training": "DINO image alignment, training pictures",
    "text_alignment": "Text alignment",
    "recognised": "Taken for this one, by the judge",
    "recognised_by_colour": "Taken for this one, by its colours",
    "kid": "KID × 10³",
    "nearest_training": "Likeness to the nearest training picture",
}


def thumbnail(png: bytes, side: int = 96) -> Image.Image:
    """Return the picture's centred square at (side, side)."""
    return _sized(images.center_crop(images.open_trusted(png)), side)


def _sized(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at `side`; a small one is enlarged with crisp pixels."""
    times = -(-side // max(picture.size))
    if times > 1:
        picture = picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    scale = side / max(picture.size)
    return picture.resize((round(scale * picture.width), round(scale * picture.height)), Image.Resampling.LANCZOS)


def image_uri(image: Image.Image, *, lossless: bool = False) -> str:
    """Encode an image as a WebP data URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=80, method=6, lossless=lossless)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail_uri(png: bytes, side: int = 96) -> str:
    """Return a thumbnail as a data URI."""
    return image_uri(thumbnail(png, side))


def tiles(strip: bytes) -> list[bytes]:
    """Cut a strip of square pictures, as previews are kept, into its pictures."""
    image = images.open_trusted(strip)
    side = image.height
    return [images.encode(image.crop((left, 0, left + side, side))) for left in range(0, image.width, side)]


def montage(pngs: Sequence[bytes], columns: int, side: int, *, gap: int = 2, labels: Sequence[str] = ()) -> Image.Image:
    """Lay pictures out row by row on a transparent sheet.

    Args:
        pngs: the pictures.
        columns: how many beside each other.
        side: of one picture, in pixels.
        gap: between two, in pixels.
        labels: a few characters under each picture; none by default.
    """
    line = 12 if labels else 0
    columns = max(1, min(columns, len(pngs)))
    rows = -(-len(pngs) // columns)
    sheet = Image.new("RGBA", (columns * (side + gap) - gap, max(1, rows * (side + line + gap) - gap)))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for number, png in enumerate(pngs):
        left, top = number % columns * (side + gap), number // columns * (side + line + gap)
        sheet.paste(thumbnail(png, side), (left, top))
        if labels:
            draw.text((left + side / 2, top + side + 1), labels[number], fill=INK, font=font, anchor="ma")
    return sheet


def write(sheet: Image.Image, place: tuple[int, int], text: str, width: int, size: float = 10) -> None:
    """Write a line of text on a sheet, smaller where it is wider than `width` pixels, and cut where that is not enough."""
    draw = ImageDraw.Draw(sheet)
    fonts = [ImageFont.truetype(FONT, points) for points in (size, size - 1, size - 2)]
    font = next((one for one in fonts if draw.textlength(text, one) <= width), fonts[-1])
    shown = text
    while shown and draw.textlength(shown if shown == text else f"{shown}…", font) > width:
        shown = shown[:-1].rstrip()
    draw.text(place, shown if shown == text else f"{shown}…", fill="#333333", font=font)


def masked_view(png: bytes, mask: npt.NDArray[np.floating[Any]], side: int = 96) -> Image.Image:
    """Return a training view with the box outlined in which its loss counts; nothing is drawn when all of it does.

    Args:
        png: the view.
        mask: (h, w) of 0 and 1, in latent cells.
        side: the result's longer one, in pixels.
    """
    view = _sized(images.open_trusted(png), side)
    if mask.all():
        return view
    rows, columns = np.nonzero(mask)
    per_row, per_column = view.height / mask.shape[0], view.width / mask.shape[1]
    box = (
        columns.min() * per_column,
        rows.min() * per_row,
        (columns.max() + 1) * per_column - 1,
        (rows.max() + 1) * per_row - 1,
    )
    draw = ImageDraw.Draw(view)
    draw.rectangle(box, outline="black", width=3)  # with the white within, visible on any picture
    draw.rectangle((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), outline="white", width=1)
    return view


def similarity_histogram(values: Sequence[float], threshold: float | None = None) -> Figure:
    """Show how near the retrieved captions are to the class prompt, and the least similarity that was asked for."""
    figure, axes = chart(4.6, 1.9)
    axes.hist(values, bins=24, color=CUSTOMIZED, alpha=0.85, rwidth=0.92)
    if threshold is not None:
        axes.axvline(threshold, color=MARK, linewidth=1.2)
        axes.text(threshold, axes.get_ylim()[1], f" limit {threshold:g}", color=MARK, fontsize=8, va="top")
    axes.set_xlabel("similarity of caption and class prompt")
    axes.set_ylabel("images")
    return figure


def loss_curve(history: pd.DataFrame) -> Figure:
    """Show both losses by step: every step faintly, and a centred running mean over a tenth of the training.

    Args:
        history: columns step, instance_loss and prior_loss.
    """
    figure, axes = chart(4.6, 2.3)
    window = max(1, len(history) // 10)
    for column, label, colour in (
        ("instance_loss", "concept", CUSTOMIZED),
        ("prior_loss", "regularization (prior preservation)", BASE),
    ):
        smooth = history[column].rolling(window, center=True, min_periods=1).mean()
        axes.plot(history["step"], history[column], color=colour, alpha=0.28, linewidth=0.7)
        axes.plot(history["step"], smooth, color=colour, linewidth=2, label=label)
    axes.set_ylim(0, float(history[["instance_loss", "prior_loss"]].stack().quantile(0.99)) * 1.1 or 1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def metrics_chart(metrics: pd.DataFrame) -> Figure:
    """Show base and customized model with their intervals, a line of its own scale for each metric.

    Args:
        metrics: columns subject, metric, value, ci_low and ci_high.
    """
    shown = [name for name in METRICS if name in set(metrics["metric"])]
    figure = Figure(figsize=(4.6, 0.2 + 0.7 * len(shown)), layout="constrained")
    for row, name in enumerate(shown, 1):
        axes = plain(figure.add_subplot(len(shown), 1, row))
        part = metrics[metrics["metric"] == name].set_index("subject")
        for height, subject, colour in ((0, "customized", CUSTOMIZED), (1, "base", BASE)):
            value, low, high = (float(x) for x in part.loc[subject, ["value", "ci_low", "ci_high"]])
            axes.plot([low, high], [height, height], color=colour, linewidth=3.5, alpha=0.45, solid_capstyle="round")
            axes.plot([value], [height], "o", color=colour, markersize=6)
        axes.set_title(METRICS[name], fontsize=9, color=INK, loc="left")
        axes.set_yticks([0, 1], ["customized", "base"])
        axes.set_ylim(-0.6, 1.6)
        axes.margins(x=0.1)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def chart_uri(figure: Figure, dpi: int = 200) -> str:
    """Draw a chart on transparency, as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=True)
    return image_uri(Image.open(buffer), lossless=True)


def chart(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty chart, in inches; an object of its own, since pyplot's global state is not for threads."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, plain(figure.add_subplot())


def plain(axes: Axes) -> Axes:
    """Leave of the axes what is needed, in ink that reads in light and dark."""
    axes.tick_params(colors=INK, labelsize=8, width=0.6)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(INK)
        spine.set_linewidth(0.6)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)
        axis.label.set_fontsize(9)
    return axes
