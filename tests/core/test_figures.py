import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from customdiff_core import figures, images

from ..handmade import history, metrics_table, png


def opened(uri: str) -> Image.Image:
    head, data = uri.split(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def flat(colour: str, size: tuple[int, int] = (16, 16)) -> bytes:
    return images.encode(Image.new("RGB", size, colour))


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (300, 200), (90, 400)])
def test_a_thumbnail_is_a_square_webp_of_the_side_asked_for(size: tuple[int, int]) -> None:
    image = opened(figures.thumbnail_uri(flat("red", size), 96))
    assert (image.format, image.size) == ("WEBP", (96, 96))


def test_a_whole_multiple_keeps_hard_edges() -> None:
    board = np.zeros((16, 16, 3), np.uint8)
    board[:, 8:] = 255
    thumbnail = np.asarray(figures.thumbnail(images.encode(Image.fromarray(board)), 64))
    assert set(np.unique(thumbnail)) == {0, 255}


def test_equal_pictures_give_equal_bytes() -> None:
    assert figures.thumbnail_uri(png(3)) == figures.thumbnail_uri(png(3)) != figures.thumbnail_uri(png(4))
    first, second = (figures.chart_uri(figures.loss_curve(history())) for _ in range(2))
    assert first == second


def test_a_strip_is_cut_into_its_squares() -> None:
    strip = Image.new("RGB", (48, 16), "red")
    strip.paste("blue", (16, 0, 32, 16))
    colours = [images.open_trusted(tile).getpixel((8, 8)) for tile in figures.tiles(images.encode(strip))]
    assert colours == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


def test_a_montage_lays_rows_and_leaves_gaps_transparent() -> None:
    sheet = figures.montage([flat("red"), flat("lime"), flat("blue")], 2, 20, gap=4)
    assert sheet.size == (44, 44)
    assert [sheet.getpixel(at) for at in ((10, 10), (34, 10), (10, 34))] == [
        (255, 0, 0, 255),
        (0, 255, 0, 255),
        (0, 0, 255, 255),
    ]
    assert sheet.getpixel((22, 10)) == sheet.getpixel((34, 34)) == (0, 0, 0, 0)


def test_a_montage_makes_room_for_labels() -> None:
    plain, labelled = (figures.montage([flat("red")], 4, 32, labels=labels) for labels in ((), ("0.98",)))
    assert labelled.height > plain.height
    below = np.asarray(labelled)[32:, :, 3]
    assert below.any()


def test_a_masked_view_outlines_the_box_and_nothing_else() -> None:
    mask = np.zeros((8, 8), np.float32)
    mask[2:4, 3:6] = 1
    view = np.asarray(figures.masked_view(flat("gray", (64, 64)), mask, 64))
    touched = np.argwhere((view != 128).any(axis=2))
    assert touched.min(axis=0).tolist() == [16, 24]
    assert touched.max(axis=0).tolist() == [31, 47]
    assert (view[20:28, 28:44] == 128).all()


def test_a_view_that_counts_as_a_whole_has_no_outline() -> None:
    view = figures.masked_view(flat("gray", (64, 64)), np.ones((8, 8), np.float32), 64)
    assert view.getcolors() == [(64 * 64, (128, 128, 128))]


def test_the_histogram_marks_the_limit() -> None:
    (axes,) = figures.similarity_histogram([0.8, 0.9, 0.95], 0.85).axes
    assert [text.get_text().strip() for text in axes.texts] == ["limit 0.85"]
    (axes,) = figures.similarity_histogram([0.8, 0.9, 0.95]).axes
    assert not axes.texts


def test_the_loss_curve_shows_each_loss_raw_and_smoothed() -> None:
    (axes,) = figures.loss_curve(history(100)).axes
    raw, smooth, *prior = axes.lines
    assert len(prior) == 2
    assert np.std(smooth.get_ydata()) < np.std(raw.get_ydata()) / 2  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("steps", [1, 2])
def test_the_loss_curve_of_a_very_short_training(steps: int) -> None:
    assert opened(figures.chart_uri(figures.loss_curve(history(steps)))).width > 100


def test_the_metrics_chart_has_a_line_a_metric_with_its_interval() -> None:
    chart = figures.metrics_chart(metrics_table())
    assert [axes.get_title(loc="left") for axes in chart.axes] == [
        title for metric, title in figures.METRICS.items() if metric in set(metrics_table()["metric"])
    ]
    customized = chart.axes[0].lines[0]
    assert customized.get_xdata() == pytest.approx([0.25, 0.45])


def test_charts_are_transparent_so_that_they_suit_light_and_dark() -> None:
    table = metrics_table()
    chart = opened(figures.chart_uri(figures.metrics_chart(pd.DataFrame(table[table["metric"] == "kid"]))))
    assert np.asarray(chart.convert("RGBA"))[0, 0, 3] == 0


def test_a_view_that_is_not_square_keeps_its_shape_and_its_box() -> None:
    mask = np.zeros((6, 11), np.float32)
    mask[2:4, 6:11] = 1
    view = np.asarray(figures.masked_view(flat("gray", (88, 48)), mask, 88))
    assert view.shape == (48, 88, 3)
    touched = np.argwhere((view != 128).any(axis=2))
    assert touched.min(axis=0).tolist() == [16, 48]
    assert touched.max(axis=0).tolist() == [31, 87]


@pytest.mark.parametrize(
    ("text", "width"), [("a cat", 60), ("a V* cat on a yellow background", 140), ("a cat " * 30, 100)]
)
def test_words_stay_in_their_width(text: str, width: int):
    sheet = Image.new("RGB", (300, 20), "white")
    figures.write(sheet, (5, 2), text, width)
    inked = np.asarray(sheet).min(axis=(0, 2)) < 200
    assert inked[5:].any()
    assert not inked[5 + width + 1 :].any()
