"""Flow `pretrain`: the embedded base model, from drawings to figures.

    prefect deployment run pretrain/openmoji

Hours on two cores. Every part is a stage of its own with checkpoints: killed, it goes on; changed, what hangs on it is
made again. `start` goes on from an earlier base model's UNet, from its decoder, from its VAE and UNet, or from its judge, on
scenes of another seed:

    prefect deployment run pretrain/openmoji --param size=further --param start=data/models/openmoji --param seed=6
    prefect deployment run pretrain/openmoji --param size=decoder --param start=data/models/openmoji --param seed=7
    prefect deployment run pretrain/openmoji --param size=latents --param start=data/models/openmoji --param seed=8
    prefect deployment run pretrain/openmoji --param size=judge --param start=data/models/openmoji --param seed=10
"""

from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

import tasks.pretrain as part
from customdiff_core.artifacts import Artifact
from customdiff_core.config import Device, Runtime
from customdiff_core.errors import WeightsError
from customdiff_core.pretraining.config import PRESETS, PretrainConfig
from customdiff_core.profiles import EncoderSource, ModelSource
from customdiff_core.weights import model_folder
from tasks import publish
from tasks.stores import store


@flow(name="pretrain")
def pretrain(
    size: Literal["full", "further", "decoder", "latents", "judge", "smoke"] = "full",
    steps: Annotated[int, Field(ge=1)] | None = None,
    seed: int = 0,
    start: Path | None = None,
    against: Path | None = None,
    device: Device = "auto",
) -> Artifact:
    """Make the embedded base model, and say how good it is.

    Args:
        size: "full" is the committed model's, hours; "further" takes an earlier UNet on, for an hour and a quarter, on scenes
            with more of what people customize, more pairs and far things and more in two colours; "decoder" takes its VAE's
            decoder on, for 15 minutes, on such scenes, with latents and UNet as they are; "latents" takes the whole VAE on and
            then the UNet with its new latents, for an hour and a quarter; "judge" takes the evaluation CLIP on, for half an hour,
            with bent lines, so that it names what a person does, and with twins of every scene, so that it knows a thing wherever
            it is (earlier figures do not compare); "smoke" shows in two minutes that everything works.
        steps: of the UNet, or of the part that goes on without it; empty takes the size's.
        seed: of the scenes, and of batches and noise; take another than before to go on with what is new.
        start: a base model's folder to go on from; all that does not go on is kept as it is.
        against: another base model's folder, measured beside it.
        device: where it trains.
    """
    if size not in ("full", "smoke") and not start:
        raise WeightsError(
            f'pretraining of size "{size}": found no start, need an earlier base model\'s folder; set start to '
            "data/models/openmoji, or take the size full"
        )
    config, runtime = PRESETS[size].of(steps, seed), Runtime(device=device)
    models = {"against": ModelSource(path=against / "openmoji-sd")} if against else {}
    for source in models.values():
        model_folder(source)  # hours before it is measured
    adopted = part.adopt(start) if start else None  # a folder that is none ends the run before hours of it
    drawn = part.scenes(config.world)
    parts = adopted or trained(drawn, config, runtime)
    if start and "judge" in config.onward:
        parts["judge"] = part.clip(drawn, parts["tokenizer"], config.judge, runtime, parts["judge"], part="judge")
    if start and "vae" in config.onward:
        parts["vae"] = part.vae(drawn, config.vae, runtime, parts["vae"])
    if "unet" in config.onward:
        latents = part.latents(drawn, parts["vae"], runtime)
        features = part.features(drawn, parts["tokenizer"], parts["clip"], runtime)
        parts["unet"] = part.unet(latents, features, config.unet, runtime, parts.get("unet"))
    model = part.assemble(parts)
    folder = store().path(model)
    models = {"openmoji": ModelSource(path=folder / "openmoji-sd")} | models
    judge = EncoderSource(model="openmoji-judge", path=folder / "openmoji-judge")
    figures = part.validate(models, judge, config.sample, config.validation, runtime)
    publish.pretrained(model, figures)
    return model


def trained(drawn: Artifact, config: PretrainConfig, runtime: Runtime) -> dict[str, Artifact]:
    """Every part but the UNet, from nothing."""
    words = part.tokenizer(drawn, config.tokenizer)
    return {
        "tokenizer": words,
        "clip": part.clip(drawn, words, config.clip, runtime),
        "judge": part.clip(drawn, words, config.judge, runtime, part="judge"),
        "vae": part.vae(drawn, config.vae, runtime),
        "dino": part.dino(drawn, config.dino, runtime),
    }
