"""The rows of the paper's table (arXiv:2212.04488, tables 1 and 2), what tells them apart, and figures that were published."""

from math import nan
from typing import Literal

from pydantic import Field

from customdiff_core.config import Frozen
from customdiff_core.errors import ConfigError, did_you_mean

Way = Literal["base", "alone", "apart", "joint", "sequential", "merge"]
Source = Literal["paper", "CustomConcept101"]


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
    published: dict[Source, dict[str, float]] = Field(
        default_factory=dict,
        description="figures of the paper, and of its authors' larger dataset; Stable Diffusion 1.4",
    )

    def figure(self, source: Source, metric: str) -> float:
        """What was published; NaN where nothing was."""
        return self.published.get(source, {}).get(metric, nan)


def _published(
    text: float, image: float, kid: float | None = None, dataset: tuple[float, float, float] | None = None
) -> dict[Source, dict[str, float]]:
    """Text alignment, image alignment with the training pictures, and KID x 10^3 against real images of the category.

    `dataset`: text, image and DINO image alignment of CustomConcept101, at 200 steps.
    """
    paper = {"text_alignment": text, "image_alignment_training": image} | ({} if kid is None else {"kid": kid})
    metrics = ("text_alignment", "image_alignment_training", "dino_alignment_training")
    return {"paper": paper, "CustomConcept101": dict(zip(metrics, dataset or (), strict=False))}


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
            published=_published(0.670, 0.827, 22.27, (0.6126, 0.7524, 0.5111)),
        ),
        Row(
            name="dreambooth",
            title="DreamBooth",
            together=False,
            way="alone",
            method=_DREAM,
            published=_published(0.781, 0.776, 32.53, (0.7522, 0.7520, 0.5533)),
        ),
        Row(
            name="fine-tune-all",
            title="Custom Diffusion, fine-tune all",
            together=False,
            way="alone",
            method=_ALL,
            published=_published(0.795, 0.748, 19.27),
        ),
        Row(
            name="custom-diffusion",
            title="Custom Diffusion",
            together=False,
            way="alone",
            method=_CD,
            published=_published(0.795, 0.775, 20.96, (0.7602, 0.7440, 0.5311)),
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
            published=_published(0.544, 0.630),
        ),
        Row(
            name="dreambooth-together",
            title="DreamBooth, joint",
            together=True,
            way="joint",
            method=_DREAM,
            published=_published(0.783, 0.695, dataset=(0.7383, 0.6625, 0.3816)),
        ),
        Row(
            name="fine-tune-all-together",
            title="Custom Diffusion, fine-tune all, joint",
            together=True,
            way="joint",
            method=_ALL,
            published=_published(0.787, 0.691),
        ),
        Row(
            name="sequential",
            title="Custom Diffusion, sequential",
            together=True,
            way="sequential",
            method=_CD,
            published=_published(0.797, 0.700),
        ),
        Row(
            name="merged",
            title="Custom Diffusion, merged by optimization",
            together=True,
            way="merge",
            method=_CD,
            published=_published(0.800, 0.695, dataset=(0.7627, 0.6577, 0.3650)),
        ),
        Row(
            name="joint",
            title="Custom Diffusion, joint",
            together=True,
            way="joint",
            method=_CD,
            published=_published(0.801, 0.706, dataset=(0.7567, 0.6680, 0.3760)),
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
