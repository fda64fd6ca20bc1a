"""The twelve colours that captions name, and what a colour is called."""

import colorsys

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 60, 54),
    "orange": (240, 140, 40),
    "yellow": (245, 214, 80),
    "green": (80, 170, 80),
    "teal": (40, 150, 150),
    "blue": (60, 110, 210),
    "purple": (130, 80, 190),
    "pink": (240, 150, 190),
    "brown": (130, 90, 60),
    "gray": (140, 140, 140),
    "black": (35, 35, 35),
    "white": (250, 250, 250),
}
# Hues in degrees up to which a colour is called so; the circle closes with red.
HUES = (
    (15, "red"),
    (41, "orange"),
    (65, "yellow"),
    (150, "green"),
    (190, "teal"),
    (250, "blue"),
    (295, "purple"),
    (345, "pink"),
    (361, "red"),
)
JITTER = 14  # a named colour is this much around its mean, of 255


def name_of(rgb: tuple[int, int, int]) -> str:
    """What a caption calls a colour: by lightness and hue, as people do, not by distance in RGB."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(value / 255 for value in rgb))
    chroma = (max(rgb) - min(rgb)) / 255
    if chroma < 0.12:
        return "black" if lightness < 0.25 else "white" if lightness > 0.9 else "gray"
    hue *= 360
    if 8 < hue < 45 and lightness < 0.46 and saturation < 0.75:
        return "brown"
    if (hue > 300 or hue < 15) and lightness > 0.78:
        return "pink"
    return next(name for limit, name in HUES if hue < limit)


def hue_group(colour: str) -> str:
    """What the shades of one paint have in common: `#f4aa41` and `#e27022` are both orange."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    name = name_of((red, green, blue))
    return "gray" if name in ("white", "gray", "black") and name != "white" else name


def luminance(colour: str) -> float:
    """Relative lightness of a hex colour, 0..1; never 0, so that shades can be divided."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return max(0.02, 0.299 * red + 0.587 * green + 0.114 * blue)
