"""`prefect deployment run pretrain/openmoji`, small: the base model's whole chain on the real server and worker."""

import pandas as pd
import pytest

from customdiff_core.config import Runtime
from customdiff_core.pretraining.config import SMOKE
from customdiff_core.pretraining.unet import unet

from .conftest import Stack

pytestmark = pytest.mark.e2e
PARTS = {"scenes", "tokenizer", "clip", "judge", "vae", "dino", "latents", "features", "unet", "assemble", "validate"}
SURE = 3  # standard errors, over the held-out scenes


def test_a_smoke_pretraining_learns_from_captions_and_shows_it(stack: Stack) -> None:
    run = stack.run("pretrain/openmoji", size="smoke")

    assert stack.task_states(run["id"]) == dict.fromkeys(PARTS, "Completed")
    page = stack.artifacts(run["id"])["pretrain-openmoji"]
    assert "64 held-out captions" in page
    assert "thing named" in page
    assert "data:image/" in page
    again = stack.run("pretrain/openmoji", size="smoke")
    assert stack.task_states(again["id"]) == dict.fromkeys(PARTS, "Cached")

    told = stack.store.newest("unet")
    chain = stack.store.lineage(told)
    pictures, captions = chain["scene_latents"], chain["caption_features"]
    control = SMOKE.unet.model_copy(update={"shuffled_captions": True})
    shuffled = unet(pictures, captions, control, store=stack.store, runtime=Runtime(device="cpu"))
    own, others = (pd.read_parquet(stack.store.path(one) / "held_out.parquet") for one in (told, shuffled))
    assert own["timestep"].equals(others["timestep"])
    gained = others["loss"] - own["loss"]  # scene by scene, on equal noise at equal times
    assert gained.mean() > SURE * gained.sem()
