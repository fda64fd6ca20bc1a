"""The rows of the paper's table (arXiv:2212.04488, tables 1 and 2), what tells them apart, and the paper's own figures."""

from typing import Literal

from pydantic import Field

from customdiff_core.config import Frozen
from customdiff_core.errors import ConfigError, did_you_mean

Way = Literal["base", "alone", "apart", "joint", "sequential", "merge"]


class Row(Frozen):
    """One way to get a customized model."""

    name: str
    title: str
    together: bool = Field(description="several concepts in one picture, or one")
    way: Way = Field(
        description="nothing trained; one concept; each apart, their tokens put together; together; one after the other; "
        "each apart, then merged in closed form"
    )
    method: str = "custom-diffusion"
    regularized: bool = Field(
        default=True, description="with the method's regularization images; without is an ablation"
    )
    paper: dict[str, float] = Field(default_factory=dict, description="the paper's figures, on Stable Diffusion 1.4")


def _paper(text: float, image: float, kid: float | None = None) -> dict[str, float]:
    """Text alignment, image alignment with the training pictures, and KID x 10^3 against real images of the category."""
    found = {"text_alignment": text, "image_alignment_training": image}
    return found if kid is None else found | {"kid": kid}


_CD, _ALL, _DREAM, _TI = "custom-diffusion", "custom-diffusion-all", "dreambooth", "textual-inversion"

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(name="base", title="Base model, nothing trained", together=False, way="base"),
        Row(
            name="textual-inversion",
            title="Textual Inversion",
            together=False,
            way="alone",
            method=_TI,
            paper=_paper(0.670, 0.827, 22.27),
        ),
        Row(
            name="dreambooth",
            title="DreamBooth",
            together=False,
            way="alone",
            method=_DREAM,
            paper=_paper(0.781, 0.776, 32.53),
        ),
        Row(
            name="fine-tune-all",
            title="Custom Diffusion, fine-tune all",
            together=False,
            way="alone",
            method=_ALL,
            paper=_paper(0.795, 0.748, 19.27),
        ),
        Row(
            name="custom-diffusion",
            title="Custom Diffusion",
            together=False,
            way="alone",
            method=_CD,
            paper=_paper(0.795, 0.775, 20.96),
        ),
        Row(
            name="unregularized",
            title="Custom Diffusion, no regularization images",
            together=False,
            way="alone",
            method=_CD,
            regularized=False,
        ),
        Row(name="base-together", title="Base model, nothing trained", together=True, way="base"),
        Row(
            name="textual-inversion-together",
            title="Textual Inversion, tokens trained apart",
            together=True,
            way="apart",
            method=_TI,
            paper=_paper(0.544, 0.630),
        ),
        Row(
            name="dreambooth-together",
            title="DreamBooth, joint",
            together=True,
            way="joint",
            method=_DREAM,
            paper=_paper(0.783, 0.695),
        ),
        Row(
            name="fine-tune-all-together",
            title="Custom Diffusion, fine-tune all, joint",
            together=True,
            way="joint",
            method=_ALL,
            paper=_paper(0.787, 0.691),
        ),
        Row(
            name="sequential",
            title="Custom Diffusion, sequential",
            together=True,
            way="sequential",
            method=_CD,
            paper=_paper(0.797, 0.700),
        ),
        Row(
            name="merged",
            title="Custom Diffusion, merged by optimization",
            together=True,
            way="merge",
            method=_CD,
            paper=_paper(0.800, 0.695),
        ),
        Row(
            name="joint",
            title="Custom Diffusion, joint",
            together=True,
            way="joint",
            method=_CD,
            paper=_paper(0.801, 0.706),
        ),
    )
}


def get(name: str) -> Row:
    """Return a row by its name.

    Raises:
        ConfigError: for an unknown name, naming the nearest.
    """
    if name not in ROWS:
        raise ConfigError(f"row: found {name!r}, need one of {', '.join(ROWS)}{did_you_mean(name, ROWS)}")
    return ROWS[name]
