"""The flow `pretrain`: what it asks for before it begins, and which parts a size trains."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_args

import pytest

import flows.pretrain
from customdiff_core.config import Runtime
from customdiff_core.errors import WeightsError
from customdiff_core.pretraining.config import PRESETS
from flows.pretrain import pretrain

Onward = Literal["further", "decoder", "latents", "judge"]


@pytest.mark.parametrize("size", get_args(Onward))
def test_going_further_needs_something_to_go_on_from(size: Onward) -> None:
    with pytest.raises(WeightsError, match=rf'size "{size}": found no start, need an earlier base model\'s folder'):
        pretrain.fn(size=size)


@pytest.mark.parametrize(
    ("size", "part"), [("full", "unet"), ("further", "unet"), ("decoder", "vae"), ("judge", "judge")]
)
def test_steps_and_seed_are_of_the_part_that_goes_on(size: str, part: str) -> None:
    before, config = PRESETS[size], PRESETS[size].of(7, 3)
    assert (getattr(config, part).steps, getattr(config, part).seed, config.world.seed) == (7, 3, 3)
    assert all(getattr(config, one) == getattr(before, one) for one in ("clip", "judge", "vae", "unet") if one != part)


def test_where_both_go_on_steps_are_the_unets_and_the_seed_is_boths() -> None:
    before, config = PRESETS["latents"], PRESETS["latents"].of(7, 3)
    assert (config.unet.steps, config.vae.steps) == (7, before.vae.steps)
    assert (config.unet.seed, config.vae.seed, config.world.seed) == (3, 3, 3)
    assert not config.vae.encoder_frozen


@pytest.mark.parametrize(
    ("size", "trained"),
    [
        ("further", ["latents of old vae", "unet"]),
        ("decoder", ["vae"]),
        ("latents", ["vae", "latents of new vae", "unet"]),
        ("judge", ["judge"]),
    ],
)
def test_a_model_goes_on_in_its_sizes_parts_alone(
    size: Onward, trained: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []

    def latents(scenes: str, vae: str, runtime: Runtime) -> str:
        told.append(f"latents of {vae}")
        return "latents"

    def on(name: str) -> Callable[..., str]:
        def run(*inputs: object, part: str = name) -> str:
            assert (inputs[-1], part) == (f"old {name}", name)
            told.append(name)
            return f"new {name}"

        return run

    stubs = {
        "adopt": lambda start: {name: f"old {name}" for name in ("tokenizer", "clip", "judge", "vae", "unet", "dino")},
        "scenes": lambda config: "scenes",
        "latents": latents,
        "features": lambda *inputs: "features",
        "clip": on("judge"),
        "vae": on("vae"),
        "unet": on("unet"),
        "assemble": lambda parts: sorted(parts.values()),
        "validate": lambda *inputs: "figures",
        **dict.fromkeys(("tokenizer", "dino"), lambda *inputs: pytest.fail("a part that is kept was made anew")),
    }
    monkeypatch.setattr(flows.pretrain, "part", SimpleNamespace(**stubs))
    monkeypatch.setattr(flows.pretrain, "store", lambda: SimpleNamespace(path=lambda artifact: tmp_path))
    monkeypatch.setattr(flows.pretrain.publish, "pretrained", lambda model, figures: None)
    made = pretrain.fn(size=size, start=tmp_path)
    assert told == trained
    assert {one for one in made if one.startswith("new")} == {f"new {name}" for name in trained if " " not in name}
