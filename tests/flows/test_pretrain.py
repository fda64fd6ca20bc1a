"""The flow `pretrain`, before it begins."""

from typing import Literal

import pytest

from customdiff_core.errors import WeightsError
from customdiff_core.pretraining.config import PRESETS
from flows.pretrain import pretrain


@pytest.mark.parametrize("size", ["further", "decoder"])
def test_going_further_needs_something_to_go_on_from(size: Literal["further", "decoder"]) -> None:
    with pytest.raises(WeightsError, match=rf'size "{size}": found no start, need an earlier base model\'s folder'):
        pretrain.fn(size=size)


@pytest.mark.parametrize(("size", "part"), [("full", "unet"), ("further", "unet"), ("decoder", "vae")])
def test_steps_and_seed_are_of_the_part_that_goes_on(size: str, part: str) -> None:
    before, config = PRESETS[size], PRESETS[size].of(7, 3)
    assert (getattr(config, part).steps, getattr(config, part).seed, config.world.seed) == (7, 3, 3)
    other = {"unet": "vae", "vae": "unet"}[part]
    assert getattr(config, other) == getattr(before, other)
