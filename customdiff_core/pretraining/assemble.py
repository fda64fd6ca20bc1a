"""Base model: every part laid out as other libraries open it.

openmoji-sd/     a diffusers StableDiffusionPipeline
openmoji-clip/   the conditioning CLIP whole, an open_clip model: retrieval
openmoji-judge/  the evaluation CLIP, an open_clip model: used for nothing else
openmoji-dino/   a transformers ViTModel: DINO image alignment
"""

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file, save_file
from transformers import ViTImageProcessor, ViTModel

from customdiff_core.artifacts import Artifact, Store
from customdiff_core.errors import WeightsError
from customdiff_core.pretraining import clip as clips
from customdiff_core.pretraining import stages
from customdiff_core.pretraining import tokenizer as tokenizers
from customdiff_core.pretraining.folders import forget_paths
from customdiff_core.profiles import ModelSource, VisionSource
from customdiff_core.weights import model_folder, vision_files

PIPELINE = "openmoji-sd"
ENCODERS = {"clip": "openmoji-clip", "judge": "openmoji-judge"}
DINO = "openmoji-dino"
KINDS = {"tokenizer": "tokenizer", "clip": "clip", "judge": "clip", "vae": "vae", "unet": "unet", "dino": "dino"}


def assemble(parts: Mapping[str, Artifact], *, store: Store) -> Artifact:
    """Lay the parts out, in half precision.

    Args:
        parts: `tokenizer`, `clip`, `vae`, `unet`, `judge` and `dino`.
        store: where they are, and the result goes.

    Returns:
        A `base_model` artifact: the folders above.
    """

    def produce(folder: Path) -> int:
        tokenizer = tokenizers.load(store, parts["tokenizer"])
        unet = store.path(parts["unet"])
        make: Any = StableDiffusionPipeline  # whose annotations forbid a missing safety checker
        pipeline = make(
            vae=AutoencoderKL.from_pretrained(store.path(parts["vae"])),
            text_encoder=clips.text_encoder(clips.load(store, parts["clip"]), tokenizer),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel.from_pretrained(unet / "unet"),
            scheduler=DDIMScheduler.from_pretrained(unet / "scheduler"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.to(dtype=torch.float16).save_pretrained(folder / PIPELINE)
        for part, name in ENCODERS.items():
            _encoder(store.path(parts[part]), folder / name, name)
        vision = ViTModel.from_pretrained(store.path(parts["dino"]), add_pooling_layer=False)
        vision.half().save_pretrained(folder / DINO)
        side = {"height": vision.config.image_size, "width": vision.config.image_size}
        half = [0.5, 0.5, 0.5]  # it is trained on -1..1
        ViTImageProcessor(size=side, image_mean=half, image_std=half).save_pretrained(folder / DINO)
        forget_paths(folder)
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    return store.make(stages.base_model(dict(parts)), produce)


def install(artifact: Artifact, folder: Path, *, store: Store) -> None:
    """Copy a base model to where a profile looks for it; what else lies there stays."""
    source = store.path(artifact)
    for part in (PIPELINE, *ENCODERS.values(), DINO):
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.copytree(source / part, folder / part)


def adopt(folder: Path, *, store: Store) -> dict[str, Artifact]:
    """Take a base model's parts into the store, to train some of them further.

    Args:
        folder: as `install` leaves it.
        store: where the parts go.

    Returns:
        `tokenizer`, `clip`, `vae`, `unet`, `judge` and `dino`.

    Raises:
        WeightsError: if a part is not there, or is pickled.
    """
    pipeline = folder / PIPELINE
    sources = {"tokenizer": pipeline / "tokenizer", "vae": pipeline / "vae", "unet": pipeline, "dino": folder / DINO}
    sources |= {part: folder / name for part, name in ENCODERS.items()}
    if missing := [str(source) for source in sources.values() if not source.is_dir()]:
        raise WeightsError(
            f"base model {folder}: found no {missing[0]}, need every part; give a whole base model's folder"
        )
    model_folder(ModelSource(path=pipeline))
    vision_files(VisionSource(path=folder / DINO))

    def take(part: str, source: Path, result: Path) -> int:
        if part in ENCODERS:
            shape = json.loads((source / f"{ENCODERS[part]}.json").read_text())
            del shape["text_cfg"]["hf_tokenizer_name"]
            (result / clips.CONFIG).write_text(json.dumps(shape, indent=1))
            held = load_file(source / clips.WEIGHTS)
            state = {name: value.float() if value.is_floating_point() else value for name, value in held.items()}
            save_file(state, result / clips.WEIGHTS)
        elif part == "unet":
            for name in ("unet", "scheduler"):
                shutil.copytree(source / name, result / name)
        else:
            shutil.copytree(source, result, dirs_exist_ok=True)
        return 1

    return {
        part: store.make(stages.adopted(KINDS[part], source), partial(take, part, source))
        for part, source in sources.items()
    }


def _encoder(source: Path, target: Path, name: str) -> None:
    """An open_clip folder: NAME.json and its weights; the tokenizer is the pipeline's."""
    target.mkdir()
    shape: dict[str, Any] = json.loads((source / clips.CONFIG).read_text())
    shape["text_cfg"]["hf_tokenizer_name"] = f"../{PIPELINE}/tokenizer"
    (target / f"{name}.json").write_text(json.dumps(shape, indent=1) + "\n")
    state = load_file(source / clips.WEIGHTS)
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    save_file(half, target / clips.WEIGHTS)
