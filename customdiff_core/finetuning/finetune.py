"""Finetune: Custom Diffusion. Only K, V and V* are trained, on the concept and its regularization images together."""

import json
from pathlib import Path

import torch
from PIL import Image

from customdiff_core import delta as deltas
from customdiff_core import images, latents, stages, tables, text
from customdiff_core.artifacts import Artifact, Store, write_atomic
from customdiff_core.concepts import Concept
from customdiff_core.config import FinetuneConfig, Runtime, SampleConfig
from customdiff_core.devices import resolve_device
from customdiff_core.finetuning.components import Components, latent_scale, load_components, load_vae
from customdiff_core.finetuning.cross_attention import train_keys_and_values
from customdiff_core.finetuning.loop import HISTORY, Examples, Trainer
from customdiff_core.finetuning.modifier_token import add_modifier_tokens
from customdiff_core.profiles import Profile
from customdiff_core.progress import Progress, silent
from customdiff_core.sampling import draw_images


def finetune(
    concept: Concept,
    training_set: Artifact,
    profile: Profile,
    config: FinetuneConfig,
    *,
    store: Store,
    runtime: Runtime = Runtime(),
    progress: Progress = silent,
) -> Artifact:
    """Teach the base model the concept.

    Args:
        concept: its token, and the words for previews.
        training_set: from `augment`.
        profile: the base model.
        config: the method's settings.
        store: where the delta goes, and the checkpoints while it is made.
        runtime: device, and how often a checkpoint is written.
        progress: told after every step.

    Returns:
        A `delta` artifact: delta.safetensors, history.parquet (one row a step) and previews.parquet.

    Raises:
        ModifierTokenError, TrainingError, WeightsError: with what to do.
    """
    recipe = stages.finetune(concept, training_set, profile, config)

    def produce(folder: Path) -> int:
        trainer = make_trainer(concept, training_set, profile, config, store, runtime)
        scratch = store.scratch(recipe.kind, recipe.base_key)
        vae = load_vae(profile.model).to(trainer.components.device)

        def on_step(state: Trainer) -> None:
            progress(state.step, config.steps, f"loss {state.history[-1][0]:.4f}")
            if state.step % config.preview_every == 0 and state.step < config.steps:
                _preview(scratch, state, vae, concept, profile.evaluate.sample)

        trainer.run(scratch, runtime.checkpoint_every, on_step)
        _preview(scratch, trainer, vae, concept, profile.evaluate.sample)
        with trainer.averaged():
            deltas.save(folder / "delta.safetensors", _delta(trainer, concept, training_set))
        _write_history(folder / "history.parquet", trainer)
        _write_previews(folder / "previews.parquet", scratch, config)
        return config.steps

    # Seconds and the last bit of a picture differ from process to process; the weights do not.
    return store.make(recipe, produce, volatile=("history.parquet", "previews.parquet"))


def make_trainer(
    concept: Concept, training_set: Artifact, profile: Profile, config: FinetuneConfig, store: Store, runtime: Runtime
) -> Trainer:
    """Load the base model and the training set, and mark what is trained."""
    components = load_components(profile.model)
    modified = add_modifier_tokens(components, [concept.modifier_token], [concept.initializer_token])
    weights = train_keys_and_values(components.unet, detach_bos=config.detach_bos)
    components.to(resolve_device(runtime.device))
    return Trainer(components, _examples(components, training_set, profile, store), modified.rows, weights, config)


def _examples(components: Components, training_set: Artifact, profile: Profile, store: Store) -> Examples:
    table = tables.read(store, training_set, "examples", ["role", "prompt"])
    tensors = latents.load_latents(store.path(training_set) / "latents.safetensors")
    concept = table["role"] == "concept"
    captions = table.loc[~concept, "prompt"].tolist()
    with torch.no_grad():
        features = torch.cat([text.encode(components, captions[at : at + 32]) for at in range(0, len(captions), 32)])
    return Examples(
        mean=tensors["mean"],
        logvar=tensors["logvar"],
        mask=tensors["mask"],
        prompts=table.loc[concept, "prompt"].tolist(),
        prior_features=features.cpu(),
        latent_scale=latent_scale(profile.model),
    )


def _delta(trainer: Trainer, concept: Concept, training_set: Artifact) -> deltas.Delta:
    return deltas.Delta(
        weights=trainer.weights,
        tokens={concept.modifier_token: trainer.rows[0]},
        metadata={
            "base_digest": trainer.components.digest,
            "method": trainer.config.method,
            "concepts": json.dumps([concept.name]),
            "categories": json.dumps([concept.category]),
            "initializer_tokens": json.dumps([concept.initializer_token]),
            "training_set": training_set.key,
            "config": trainer.config.model_dump_json(),
        },
    )


def _write_history(path: Path, trainer: Trainer) -> None:
    rate = trainer.config.learning_rate
    rows = [
        {"step": step, **dict(zip(HISTORY, values, strict=True)), "learning_rate": rate, "seconds": seconds}
        for step, (values, seconds) in enumerate(zip(trainer.history, trainer.seconds, strict=True), 1)
    ]
    tables.write(path, rows)


def _preview(scratch: Path, trainer: Trainer, vae, concept: Concept, sample: SampleConfig) -> None:  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
    """Draw the preview prompts side by side and keep them with the checkpoints, so that a resumed run has them all."""
    prompts = [concept.with_concept(prompt) for prompt in trainer.config.preview_prompts]
    with trainer.averaged():
        drawn = draw_images(trainer.components, vae, prompts, (0,), sample)
    strip = Image.new("RGB", (sum(image.width for image in drawn), drawn[0].height))
    for number, image in enumerate(drawn):
        strip.paste(image, (number * image.width, 0))
    write_atomic(scratch / f"preview-{trainer.step:07d}.png", images.encode(strip))


def _write_previews(path: Path, scratch: Path, config: FinetuneConfig) -> None:
    """Keep this run's previews, not the last one of a shorter run that it went on from: equal recipes, equal artifacts."""
    steps = [*range(config.preview_every, config.steps, config.preview_every), config.steps]
    files = [(step, scratch / f"preview-{step:07d}.png") for step in steps]
    tables.write(path, [{"step": step, "image": file.read_bytes()} for step, file in files if file.is_file()])
