"""Tasks of the pretraining chain: one for each part of the embedded base model."""

from pathlib import Path

from prefect import task

from customdiff_core.artifacts import Artifact
from customdiff_core.config import Runtime, SampleConfig
from customdiff_core.pretraining import stages
from customdiff_core.pretraining.config import (
    ClipConfig,
    DinoConfig,
    TokenizerConfig,
    UNetConfig,
    VaeConfig,
    WorldConfig,
)
from customdiff_core.profiles import EncoderSource, ModelSource
from tasks.caching import stage
from tasks.publish import progress
from tasks.slots import gpu_slot
from tasks.stores import store


@task(name="scenes", **stage(stages.scenes))
def scenes(config: WorldConfig) -> Artifact:
    """Draw the captioned scenes."""
    from customdiff_core.pretraining.corpus import scenes as run

    with progress("pretrain-scenes", "Scenes drawn") as tell:
        return run(config, store=store(), progress=tell)


@task(name="tokenizer", **stage(stages.tokenizer))
def tokenizer(scenes: Artifact, config: TokenizerConfig) -> Artifact:
    """Learn the captions' words."""
    from customdiff_core.pretraining.tokenizer import tokenizer as run

    return run(scenes, config, store=store())


@task(name="clip", task_run_name="{part}", **stage(stages.clip))
def clip(
    scenes: Artifact,
    words: Artifact,
    config: ClipConfig,
    runtime: Runtime,
    start: Artifact | None = None,
    part: str = "clip",
) -> Artifact:
    """Train the conditioning CLIP, or the judge."""
    from customdiff_core.pretraining.clip import clip as run

    with gpu_slot(), progress(f"pretrain-{part}", "Training steps") as tell:
        return run(scenes, words, config, store=store(), runtime=runtime, progress=tell, start=start)


@task(name="vae", **stage(stages.vae))
def vae(scenes: Artifact, config: VaeConfig, runtime: Runtime, start: Artifact | None = None) -> Artifact:
    """Train the autoencoder."""
    from customdiff_core.pretraining.vae import vae as run

    with gpu_slot(), progress("pretrain-vae", "Training steps") as tell:
        return run(scenes, config, store=store(), runtime=runtime, progress=tell, start=start)


@task(name="latents", **stage(stages.latents))
def latents(scenes: Artifact, autoencoder: Artifact, runtime: Runtime) -> Artifact:
    """Encode every picture once."""
    from customdiff_core.pretraining.encoded import latents as run

    with gpu_slot(), progress("pretrain-latents", "Pictures encoded") as tell:
        return run(scenes, autoencoder, store=store(), runtime=runtime, progress=tell)


@task(name="features", **stage(stages.features))
def features(scenes: Artifact, words: Artifact, text: Artifact, runtime: Runtime) -> Artifact:
    """Encode every caption once."""
    from customdiff_core.pretraining.encoded import features as run

    with gpu_slot():
        return run(scenes, words, text, store=store(), runtime=runtime)


@task(name="unet", **stage(stages.unet))
def unet(
    latents: Artifact, features: Artifact, config: UNetConfig, runtime: Runtime, start: Artifact | None = None
) -> Artifact:
    """Train the denoiser."""
    from customdiff_core.pretraining.unet import unet as run

    with gpu_slot(), progress("pretrain-unet", "Training steps") as tell:
        return run(latents, features, config, store=store(), runtime=runtime, progress=tell, start=start)


@task(name="dino", **stage(stages.dino))
def dino(scenes: Artifact, config: DinoConfig, runtime: Runtime) -> Artifact:
    """Train the self-supervised image encoder."""
    from customdiff_core.pretraining.dino import dino as run

    with gpu_slot(), progress("pretrain-dino", "Training steps") as tell:
        return run(scenes, config, store=store(), runtime=runtime, progress=tell)


@task(name="assemble", **stage(stages.base_model))
def assemble(parts: dict[str, Artifact]) -> Artifact:
    """Lay the parts out as other libraries open them."""
    from customdiff_core.pretraining.assemble import assemble as run

    return run(parts, store=store())


@task(name="adopt")
def adopt(folder: Path) -> dict[str, Artifact]:
    """Take an earlier base model's parts, to go on from them."""
    from customdiff_core.pretraining.assemble import adopt as run

    return run(folder, store=store())


@task(name="validate", **stage(stages.base_model_figures))
def validate(
    models: dict[str, ModelSource], judge: EncoderSource, sample: SampleConfig, count: int, runtime: Runtime
) -> Artifact:
    """Measure base models on scenes that were never trained on."""
    from customdiff_core.pretraining.validation import validate as run

    with gpu_slot(), progress("pretrain-validate", "Pictures drawn") as tell:
        return run(models, judge, sample, count=count, store=store(), runtime=runtime, progress=tell)
