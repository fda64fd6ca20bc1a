"""Finetune: teach the base model one concept or several together, with any of the methods.

Joint training takes several concepts, each with its training set, and sees each equally often. Sequential training starts
from the weights of a parent delta and keeps its tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from customdiff_core import delta as deltas
from customdiff_core import images, stages, tables, text, training_set
from customdiff_core.artifacts import Artifact, Store, write_atomic
from customdiff_core.concepts import Concept
from customdiff_core.config import FinetuneConfig, Runtime, SampleConfig
from customdiff_core.devices import forget_peak_memory, memory_in_use, needing_memory, resolve_device
from customdiff_core.errors import TrainingError
from customdiff_core.finetuning import methods
from customdiff_core.finetuning.components import (
    Components,
    Condition,
    Network,
    attend_plainly,
    hold_frozen,
    latent_scale,
    load_components,
    load_unet_weights,
    load_vae,
)
from customdiff_core.finetuning.loop import HISTORY, Examples, Trainer
from customdiff_core.finetuning.methods.base import check_words
from customdiff_core.finetuning.modifier_token import add_modifier_tokens
from customdiff_core.finetuning.schedule import rate_factor
from customdiff_core.finetuning.trained_parameters import train_parameters
from customdiff_core.finetuning.weight_change import weight_changes
from customdiff_core.latents import load_latents
from customdiff_core.lineage import Lineage, Taught
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.sampling import draw_images
from customdiff_core.weights import model_digest

LESS_MEMORY = (
    "set model.gradient_checkpointing, lower train.batch_size and raise train.gradient_accumulation by as much, or take "
    "train.optimizer=adamw-8bit (customdiff train: --gradient-checkpointing, --set batch_size=1, --set augment.resolution=384)"
)


def finetune(
    concepts: tuple[Concept, ...],
    training_sets: tuple[Artifact, ...],
    profile: Profile,
    config: FinetuneConfig,
    *,
    parent: Artifact | None = None,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Artifact:
    """Teach the base model concepts.

    Args:
        concepts: their tokens, and the words for previews; as their method says them (`Method.words`).
        training_sets: of each concept, from `augment`.
        profile: the base model.
        config: method and settings.
        parent: a delta to go on from, with what it was taught (sequential training).
        store: where the delta goes, and the checkpoints while it is made.
        runtime: device, and how often a checkpoint is written.
        progress: told after every step.

    Returns:
        A `delta` artifact: delta.safetensors, history.parquet (one row a step), previews.parquet and weight_change.parquet
        (how far each weight moved).

    Raises:
        ModifierTokenError, TrainingError, WeightsError, DeltaError, DeviceMemoryError: with what to do.
    """
    recipe = stages.finetune(concepts, training_sets, profile, config, parent, runtime.purpose)

    @needing_memory("training", LESS_MEMORY)
    def produce(folder: Path) -> int:
        before = deltas.load(store.path(parent) / deltas.FILE) if parent else None
        scratch = store.scratch(recipe.kind, recipe.base_key, recipe.inputs)
        trainer = make_trainer(concepts, training_sets, profile, config, store, runtime, before)
        device = trainer.components.device
        vae = load_vae(profile.model).to(device)
        held = {"precision": config.precision}  # in which the weights are
        sample = profile.evaluate.sample.model_copy(update=held)
        memory: dict[int, int] = {}
        forget_peak_memory(device)

        def on_step(state: Trainer) -> None:
            memory[state.step] = memory_in_use(device)
            progress(state.step, state.config.steps, f"loss {state.history[-1][0]:.4f}")
            if state.step % config.preview_every == 0 and not state.finished:
                _preview(scratch, state, vae, concepts, sample)

        trainer.run(scratch, runtime.checkpoint_every, on_step)
        _preview(scratch, trainer, vae, concepts, sample)
        with trainer.averaged():
            made = _delta(trainer, concepts, before, recipe.inputs)
        deltas.save(folder / deltas.FILE, made)
        base = load_unet_weights(profile.model, tuple(made.weights)) if made.weights else {}
        tables.write(folder / "weight_change.parquet", weight_changes(made, base))
        _write_history(folder / "history.parquet", trainer, memory)
        _write_previews(folder / "previews.parquet", scratch, trainer)
        return trainer.step

    # Seconds and the last bit of a picture differ from process to process; the weights do not.
    made = store.make(recipe, produce, volatile=("history.parquet", "previews.parquet"))
    if not runtime.keep_checkpoints:
        store.drop_scratch(recipe.kind, recipe.base_key)
    return made


def make_trainer(
    concepts: Sequence[Concept],
    training_sets: Sequence[Artifact],
    profile: Profile,
    config: FinetuneConfig,
    store: Store,
    runtime: Runtime,
    parent: deltas.Delta | None = None,
) -> Trainer:
    """Load the base model and the training sets, and mark what is trained.

    Raises:
        ModifierTokenError: if two concepts have one token; TrainingError: if the training sets do not fit.
    """
    method = methods.get(config.method)
    if method.token == "existing":
        check_words((*(parent.lineage.concepts if parent else ()), *concepts))
    config = config.model_copy(update={"steps": config.steps * len(concepts)})
    components = load_components(profile.model)
    if parent is not None:
        deltas.apply(components, parent)
    rows: dict[str, torch.nn.Parameter] = {}
    if method.token == "new":
        words = [concept.modifier_token for concept in concepts], [concept.initializer_token for concept in concepts]
        rows = {encoder.name: add_modifier_tokens(encoder, *words).rows for encoder in components.encoders}
    weights = train_parameters(components.unet, method.trains, detach_bos=config.detach_bos)
    if runtime.gradient_checkpointing:
        components.unet.enable_gradient_checkpointing()
    components.to(resolve_device(runtime.device))
    examples = make_examples(components, concepts, training_sets, profile, config, store)
    hold_frozen(components.unet, config.precision, but=parent.names if parent else ())
    attend_plainly(components.unet, config.precision, max(one.mask.numel() for one in examples.latents))
    return Trainer(components, examples, rows, weights, config)


def make_examples(
    components: Components,
    concepts: Sequence[Concept],
    training_sets: Sequence[Artifact],
    profile: Profile,
    config: FinetuneConfig,
    store: Store,
) -> Examples:
    """Join training sets: all their views first, then all their regularization images.

    Raises:
        TrainingError: if one was made for another concept, in another method's words or with another base model's VAE, has no
            regularization images where they count, or too few views for those that are withheld.
    """
    for made in training_sets:
        if store.manifest(made).recipe.inputs.get("model") != model_digest(profile.model):
            raise TrainingError(
                f"training set {made.key}: found latents of another base model, need those of {profile.name} as it is now; "
                "augment again (augment/stage)"
            )
    sets: list[Any] = [training_set.examples(store, one) for one in training_sets]
    for made, one, concept in zip(training_sets, sets, concepts, strict=True):
        said = one.loc[one["role"] == "concept", "prompt"]
        if not said.str.contains(concept.noun, regex=False).all():
            raise TrainingError(
                f"training set {made.key}: found views such as {said.iloc[0]!r}, need {concept.noun!r} in each; give the key of "
                "one that was made of this concept for this method, or make it (augment/stage)"
            )
    groups = {role: [one[one["role"] == role] for one in sets] for role in ("concept", "regularization")}
    views = _groups([len(one) for one in groups["concept"]], 0)
    priors = _groups([len(one) for one in groups["regularization"]], sum(map(len, views)))
    files = [store.path(one) / training_set.LATENTS for one in training_sets]
    joined = [
        one
        for part in groups.values()
        for file, rows in zip(files, part, strict=True)
        for one in load_latents(file, zip(rows["width"], rows["height"], rows["latent_row"], strict=True))
    ]
    held = config.early_stop.views if config.early_stop else 0
    if any(len(group) <= held for group in views):
        raise TrainingError(
            f"early stop: found {min(map(len, views))} views of a concept, need more than the {held} that are withheld; "
            "raise augment.views or lower early_stop.views"
        )
    examples = Examples(
        latents=joined,
        prompts=pd.concat(groups["concept"])["prompt"].tolist(),
        prior=_prior(components, pd.concat(groups["regularization"])["prompt"].tolist()),
        latent_scale=latent_scale(profile.model),
        views=[group[: len(group) - held] for group in views],
        priors=priors,
        withheld=[row for group in views for row in group[len(group) - held :]],
    )
    beside = [row for group in priors for row in group]
    if config.prior_weight > 0 and not beside:
        raise TrainingError(
            f"training sets: found no regularization images, need some for prior_weight {config.prior_weight:g}; make the set with "
            "them, or set prior_weight to 0"
        )
    if beside and (bare := examples.by_shape(range(len(examples.prompts))).keys() - examples.by_shape(beside).keys()):
        raise TrainingError(
            f"training sets: found regularization images, but none of the shape {tuple(bare.pop())} that some views have, need "
            "them in every shape; make all sets with regularization images, and with aspect buckets or all without"
        )
    return examples


def _groups(sizes: Sequence[int], start: int) -> list[range]:
    """Consecutive rows."""
    groups: list[range] = []
    for size in sizes:
        groups.append(range(start, start + size))
        start += size
    return groups


def _prior(components: Components, captions: list[str]) -> Condition | None:
    """The regularization captions, encoded once; kept on the CPU."""
    if not captions:
        return None
    whole = text.encode_many(components, captions)
    return Condition(whole.features.cpu(), None if whole.pooled is None else whole.pooled.cpu())


def _delta(
    trainer: Trainer, concepts: Sequence[Concept], parent: deltas.Delta | None, inputs: dict[str, str]
) -> deltas.Delta:
    """What was trained, on top of what the parent knew; on the CPU, wherever it was trained."""
    tokens = dict(parent.tokens) if parent else {}
    for number, concept in enumerate(concepts if trainer.rows else ()):
        rows = {encoder: rows[number].detach().cpu().clone() for encoder, rows in trainer.rows.items()}
        tokens[concept.modifier_token] = rows
    kept = dict(trainer.components.unet.named_parameters())
    names = sorted({*trainer.weights, *(parent.names if parent else ())})
    lineage = Lineage(
        base_digest=trainer.components.digest,
        method=trainer.config.method,
        concepts=(*(parent.lineage.concepts if parent else ()), *(taught(one) for one in concepts)),
        settings=trainer.config.model_dump(mode="json"),
        inputs=inputs,
    )
    return deltas.Delta({name: kept[name].detach().cpu().clone() for name in names}, tokens, lineage)


def taught(concept: Concept) -> Taught:
    """A concept as a delta's lineage names it."""
    return Taught.model_validate(concept.model_dump(include=set(Taught.model_fields)))


def _write_history(path: Path, trainer: Trainer, memory: dict[int, int]) -> None:
    """A row a step; `memory` in bytes, unknown for the steps of a run that was broken off."""
    rows = [
        {
            "step": step,
            **dict(zip(HISTORY, values, strict=True)),
            "learning_rate": trainer.base_rates[0] * rate_factor(step - 1, trainer.config),
            "seconds": seconds,
            "memory": memory.get(step),
        }
        for step, (values, seconds) in enumerate(zip(trainer.history, trainer.seconds, strict=True), 1)
    ]
    tables.write(path, rows)


def _preview(scratch: Path, trainer: Trainer, vae: Network, concepts: Sequence[Concept], sample: SampleConfig) -> None:
    """Draw the preview prompts side by side and keep them with the checkpoints, so that a resumed run has them all."""
    prompts = [concept.with_concept(prompt) for concept in concepts for prompt in trainer.config.preview_prompts]
    with trainer.averaged():
        drawn = draw_images(trainer.components, vae, prompts, (0,), sample)
    strip = Image.new("RGB", (sum(image.width for image in drawn), drawn[0].height))
    for number, image in enumerate(drawn):
        strip.paste(image, (number * image.width, 0))
    write_atomic(scratch / f"preview-{trainer.step:07d}.png", images.encode(strip))


def _write_previews(path: Path, scratch: Path, trainer: Trainer) -> None:
    """Keep this run's previews, not the last one of a shorter run that it went on from: equal recipes, equal artifacts."""
    every = trainer.config.preview_every
    steps = [*range(every, trainer.step, every), trainer.step]
    files = [(step, scratch / f"preview-{step:07d}.png") for step in steps]
    tables.write(path, [{"step": step, "image": file.read_bytes()} for step, file in files if file.is_file()])
