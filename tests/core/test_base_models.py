"""Stable Diffusion 2 and XL by their structure: read, trained, merged and drawn as diffusers' own pipelines do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from customdiff_core import concepts, tables, text
from customdiff_core import delta as deltas
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.augmentation import augment
from customdiff_core.config import AugmentConfig, FinetuneConfig, MergeConfig, Runtime, SampleConfig
from customdiff_core.errors import DeltaError, WeightsError
from customdiff_core.finetuning.components import load_components, load_vae
from customdiff_core.finetuning.cross_attention import CROSS_ATTENTION, KEYS_AND_VALUES
from customdiff_core.finetuning.finetune import finetune, make_trainer
from customdiff_core.finetuning.modifier_token import add_modifier_tokens
from customdiff_core.finetuning.trained_parameters import matching_parameters
from customdiff_core.merging.merge import merge
from customdiff_core.profiles import Profile
from customdiff_core.sampling import draw_images, load_model
from customdiff_core.seeding import torch_generator
from customdiff_core.weights import encoder_names, model_digest, model_folder

from ..small_models import (
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_2,
    STABLE_DIFFUSION_XL,
    at_full_size,
    stable_diffusion_2,
    stable_diffusion_xl,
)

CPU = Runtime(device="cpu")
DDIM = SampleConfig(sampler="ddim", steps=3, guidance_scale=4)
TRAINING = FinetuneConfig(steps=2, learning_rate=1e-2, modifier_learning_rate=1e-2, batch_size=2)


@pytest.fixture(scope="module")
def sd2(tmp_path_factory: pytest.TempPathFactory, openmoji: Profile) -> Profile:
    return stable_diffusion_2(tmp_path_factory.mktemp("sd2"), openmoji)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory, openmoji: Profile) -> Profile:
    return stable_diffusion_xl(tmp_path_factory.mktemp("sdxl"), openmoji)


@pytest.mark.parametrize(
    ("config", "matrices", "keys_and_values", "cross_attention"),
    [
        (STABLE_DIFFUSION_1, 32, 19_169_280, 43_962_560),
        (STABLE_DIFFUSION_2, 32, 25_559_040, 50_352_320),
        (STABLE_DIFFUSION_XL, 140, 340_787_200, None),
    ],
)
def test_how_much_is_trained_of_the_full_size(
    config: dict[str, Any], matrices: int, keys_and_values: int, cross_attention
):
    unet = at_full_size(config)
    found = matching_parameters(unet, KEYS_AND_VALUES)
    assert (len(found), sum(one.numel() for one in found.values())) == (matrices, keys_and_values)
    if cross_attention:
        assert sum(one.numel() for one in matching_parameters(unet, CROSS_ATTENTION).values()) == cross_attention


# Stable Diffusion 2


def test_v_prediction_is_read_from_the_schedule_and_drawn_as_diffusers_does(sd2: Profile):
    components, vae = load_components(sd2.model), load_vae(sd2.model)
    assert components.noise_scheduler.config.prediction_type == "v_prediction"
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.unet,
        scheduler=DDIMScheduler.from_pretrained(sd2.model.path, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    assert_equal_pictures(components, vae, pipeline)


def test_v_prediction_is_trained_on_the_velocity(chain, sd2: Profile, store: Store):
    training_set = augment(chain.concept, None, sd2, AugmentConfig(resolution=64, views=4), store=store)
    alone = TRAINING.model_copy(update={"prior_weight": 0.0})
    one = make_trainer((chain.concept,), (training_set,), sd2, alone, store, CPU)
    losses = one.train_step()
    assert all(np.isfinite(losses))
    one.components.noise_scheduler.register_to_config(prediction_type="epsilon")
    one.step = 0
    assert one.train_step()[1] != losses[1]


# Stable Diffusion XL


def test_two_encoders_are_known_from_the_unet_and_not_from_a_name(sdxl: Profile, sd2: Profile):
    assert sdxl.name == sd2.name == "openmoji"
    assert [name for name, _ in encoder_names(model_folder(sdxl.model))] == ["text_encoder", "text_encoder_2"]
    assert [name for name, _ in encoder_names(model_folder(sd2.model))] == ["text_encoder"]
    assert len(load_components(sdxl.model).encoders) == 2


@pytest.mark.parametrize("name", ["text_encoder_2/config.json", "tokenizer_2/vocab.json"])
def test_the_second_encoder_must_be_there_and_is_part_of_the_digest(openmoji: Profile, tmp_path: Path, name: str):
    profile = stable_diffusion_xl(tmp_path / "model", openmoji)
    before = model_digest(profile.model)
    path = tmp_path / "model" / name
    path.write_text(path.read_text().replace("{", "{ ", 1))
    assert model_digest(profile.model) != before
    path.unlink()
    with pytest.raises(WeightsError, match=f"found no {Path(name).name if 'encoder' in name else name}, need a whole"):
        model_folder(profile.model)


def test_xl_is_drawn_as_diffusers_does(sdxl: Profile):
    """Two encoders' last layers but one, the pooled embedding, the sizes, and zeros for the empty prompt."""
    components, vae = load_components(sdxl.model), load_vae(sdxl.model)
    first, second = components.encoders
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=first.network,
        tokenizer=first.tokenizer,
        text_encoder_2=second.network,
        tokenizer_2=second.tokenizer,
        unet=components.unet,
        scheduler=DDIMScheduler.from_pretrained(sdxl.model.path, subfolder="scheduler"),
        add_watermarker=False,
    )
    assert_equal_pictures(components, vae, pipeline, height=64, width=64)


def test_the_pooled_embedding_is_taken_where_the_text_ends_and_not_at_the_new_token(sdxl: Profile):
    """The libraries pool at argmax(ids), which an added token wins."""
    components = load_components(sdxl.model)
    prompt = "photo of a <x> cat"
    for encoder in components.encoders:
        add_modifier_tokens(encoder, ["<x>"], ["ktn"])
    second = components.encoders[1]
    ids = text.token_ids(second, [prompt])
    place = ids[0].tolist().index(second.tokenizer.eos_token_id)
    assert ids.argmax().item() == 4 != place == 6
    with torch.no_grad():
        found = text.encode(components, [prompt]).pooled
        theirs = second.network(ids)
        wanted = second.network.text_projection(theirs.last_hidden_state[0, place])
    assert found is not None
    torch.testing.assert_close(found[0], wanted)
    assert not torch.allclose(found[0], theirs.text_embeds[0], atol=1e-3)


def test_the_second_tokenizer_pads_with_another_token_and_the_text_still_ends_at_its_end(sdxl: Profile):
    first, second = load_components(sdxl.model).encoders
    ids = [text.token_ids(one, ["a cat"])[0].tolist() for one in (first, second)]
    assert ids[0][:4] == ids[1][:4]
    assert ids[0][4:] != ids[1][4:]
    ends = [
        text.end_positions(one, torch.tensor([found])).tolist() for one, found in zip((first, second), ids, strict=True)
    ]
    assert ends == [[3], [3]]


@pytest.fixture(scope="module")
def xl_sets(chain, sdxl: Profile, tmp_path_factory: pytest.TempPathFactory):
    """A store with training sets of two concepts, and the retrieval index of the chain."""
    store = Store(tmp_path_factory.mktemp("xl"))
    for kind, artifact in (("index", chain.index), ("regularization", chain.regularization)):
        (store.root / kind).mkdir(parents=True)
        (store.root / kind / artifact.key).symlink_to(chain.store.path(artifact))
    both = chain.concept, concepts.load("dog")
    views = AugmentConfig(resolution=64, views=4)
    sets = tuple(augment(one, chain.regularization, sdxl, views, store=store) for one in both)
    return store, both, sets


def test_joint_training_of_xl_moves_both_vectors_of_every_token_and_loads_back(sdxl: Profile, xl_sets):
    """And it hears the regularization captions, which the public script ignores there."""
    store, both, sets = xl_sets
    one = make_trainer(both, sets, sdxl, TRAINING, store, CPU)
    assert one.examples.prior is not None
    assert one.examples.prior.pooled is not None
    assert one.examples.prior.pooled.shape == (48, 20)
    captions = tables.read(store, sets[0], "examples").query("role == 'regularization'")["prompt"].tolist()
    with torch.no_grad():
        wanted = text.encode(load_components(sdxl.model), captions * 2)
    assert wanted.pooled is not None
    torch.testing.assert_close(one.examples.prior.features, wanted.features, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.examples.prior.pooled, wanted.pooled, atol=1e-5, rtol=1e-4)
    views, priors = one.batch(0)
    heard: list[torch.Tensor] = []
    one.predict = lambda noisy, times, condition: heard.append(condition.pooled) or noisy
    with torch.no_grad():
        one.losses(views, priors, torch_generator("any"))
    assert torch.equal(heard[0][len(views) :], one.examples.prior.pooled[priors - len(one.examples.prompts)])
    made = finetune(both, sets, sdxl, TRAINING, store=store, runtime=CPU)
    delta = deltas.load(store.path(made) / deltas.FILE)
    assert len(delta.tokens) == 2
    for number, concept in enumerate(both):
        rows = delta.tokens[concept.modifier_token]
        assert {name: len(row) for name, row in rows.items()} == {"text_encoder": 24, "text_encoder_2": 32}
        for name, row in rows.items():
            assert (row - one.rows[name][number].detach()).abs().min() > 1e-4
    components, vae = load_model(sdxl, made, store, CPU)
    prompt = " and ".join(f"a {concept.noun}" for concept in both)
    assert draw_images(components, vae, [prompt], (0,), DDIM)[0].size == (64, 64)


def test_concepts_of_xl_are_merged_and_load_back(sdxl: Profile, xl_sets, chain):
    store, both, sets = xl_sets
    parts: tuple[Artifact, ...] = tuple(
        finetune((concept,), (one,), sdxl, TRAINING, store=store, runtime=CPU)
        for concept, one in zip(both, sets, strict=True)
    )
    config = MergeConfig(captions=300)
    merged = merge(parts, (1.0, 1.0), chain.index, sdxl, config, store=store)
    import pandas as pd

    report = pd.read_parquet(store.path(merged) / "merge.parquet")
    assert (report["constraint_error"] < 1e-8).all()
    assert (report["constraint_error_cast"] < 1e-5).all()
    components, vae = load_model(sdxl, merged, store, CPU)
    assert {"<teal-cat>", "<purple-dog>"} <= set(components.encoders[1].tokenizer.get_vocab())
    assert draw_images(components, vae, ["a <teal-cat> cat"], (0,), DDIM)[0].size == (64, 64)


def test_a_token_of_one_encoder_does_not_fit_two(sdxl: Profile):
    components = load_components(sdxl.model)
    lineage = deltas.Lineage(base_digest=components.digest)
    delta = deltas.Delta({}, {"<x>": {"text_encoder": torch.zeros(24)}}, lineage)
    with pytest.raises(
        DeltaError, match=r"delta: found <x> with no row for text_encoder_2, need \(32,\); load it on its own base"
    ):
        deltas.apply(components, delta)


def assert_equal_pictures(components, vae, pipeline, **sizes: int) -> None:
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a cat on a red background", "a dog"]
    noise = torch.stack([torch.randn(4, 16, 16, generator=torch_generator("sample", n, 0)) for n in range(2)])
    drawn: list[np.ndarray] = []
    for negative in ("", "a red background"):
        theirs = pipeline(
            prompts,
            negative_prompt=[negative] * len(prompts) if negative else None,
            latents=noise,
            num_inference_steps=DDIM.steps,
            guidance_scale=DDIM.guidance_scale,
            output_type="np",
            **sizes,
        ).images
        config = DDIM.model_copy(update={"negative_prompt": negative})
        ours = np.stack([np.asarray(one) for one in draw_images(components, vae, prompts, (0,), config)])
        assert np.abs(ours.astype(int) - theirs * 255).max() <= 2
        assert not np.array_equal(ours[0], ours[1])
        drawn.append(ours)
    assert not np.array_equal(*drawn)
