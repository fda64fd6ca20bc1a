"""The chain that makes the embedded base model, small: every part really trains, goes on where it was killed, and opens."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from pydantic import ValidationError
from transformers import ViTModel

from customdiff_core import processor
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.config import Runtime, SampleConfig
from customdiff_core.devices import resolve_device
from customdiff_core.errors import TrainingError, WeightsError
from customdiff_core.evaluation.dino import Dino
from customdiff_core.finetuning.checkpoints import newest_checkpoint
from customdiff_core.pretraining import assemble as assembling
from customdiff_core.pretraining import clip as clips
from customdiff_core.pretraining import corpus, encoded, tokenizer, unet, vae, validation
from customdiff_core.pretraining.config import SMOKE, TrainConfig
from customdiff_core.pretraining.dino import dino
from customdiff_core.pretraining.loop import Pretraining, pretrain, schedule
from customdiff_core.profiles import EncoderSource, ModelSource, VisionSource
from customdiff_core.retrieval.encoder import Encoder
from customdiff_core.settings import Settings
from customdiff_core.world.drawings import load_drawings
from customdiff_core.world.odds import Odds
from customdiff_core.world.scenes import called

WORLD = SMOKE.world.model_copy(update={"scenes": 400, "held_out": 96})
FEW = {"steps": 6, "warmup": 2}
NAMED = ("thing named", "colour named", "both of two things", "both colours of one")


@dataclass(frozen=True)
class Parts:
    store: Store
    scenes: Artifact
    words: Artifact
    clip: Artifact
    vae: Artifact
    latents: Artifact
    features: Artifact
    unet: Artifact
    judge: Artifact
    dino: Artifact


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    store = Store(tmp_path_factory.mktemp("pretraining"), producer="test")
    scenes = corpus.scenes(WORLD, store=store)
    words = tokenizer.tokenizer(scenes, SMOKE.tokenizer, store=store)
    text = clips.clip(scenes, words, SMOKE.clip.model_copy(update=FEW), store=store)
    judge = clips.clip(scenes, words, SMOKE.judge.model_copy(update=FEW), store=store)
    autoencoder = vae.vae(scenes, SMOKE.vae.model_copy(update=FEW), store=store)
    latents = encoded.latents(scenes, autoencoder, store=store)
    features = encoded.features(scenes, words, text, store=store)
    denoiser = unet.unet(latents, features, SMOKE.unet.model_copy(update=FEW), store=store)
    images = dino(scenes, SMOKE.dino.model_copy(update=FEW), store=store)
    return Parts(store, scenes, words, text, autoencoder, latents, features, denoiser, judge, images)


@pytest.fixture(scope="module")
def twins(parts: Parts) -> Artifact:
    """Scenes each of which has a twin."""
    return corpus.scenes(WORLD.model_copy(update={"twins": True}), store=parts.store)


@pytest.fixture(scope="module")
def model(parts: Parts) -> Artifact:
    names = ("clip", "vae", "unet", "judge", "dino")
    return assembling.assemble(
        {"tokenizer": parts.words} | {name: getattr(parts, name) for name in names}, store=parts.store
    )


def contrast(parts: Parts, **changed: float) -> clips.Contrast:
    seen, words = corpus.load(parts.store, parts.scenes, "training"), tokenizer.load(parts.store, parts.words)
    ids = clips.caption_ids(words, seen)
    config = SMOKE.clip.model_copy(update=changed)
    return clips.Contrast(clips.load(parts.store, parts.clip), seen, ids, config)


def weights(store: Store, artifact: Artifact, name: str) -> bytes:
    return (store.path(artifact) / name).read_bytes()


def test_scenes_come_in_families_and_held_out_ones_are_others(parts: Parts) -> None:
    seen, unseen = (corpus.load(parts.store, parts.scenes, split) for split in ("training", "held_out"))
    assert seen.pictures.shape == (400, 32, 32, 3)
    assert len(seen.captions) == 400
    families = [seen.captions[start : start + corpus.FAMILY] for start in range(0, 400, corpus.FAMILY)]
    assert np.mean([len(set(family)) for family in families]) > 6
    shared = [len(set(family[0].split()) & set(other.split())) for family in families for other in family[1:]]
    assert np.mean(shared) > 4
    assert not {row.tobytes() for row in seen.pictures} & {row.tobytes() for row in unseen.pictures}


def test_training_scenes_are_of_the_worlds_odds_and_held_out_ones_of_all_alike(parts: Parts, tmp_path: Path) -> None:
    store = Store(tmp_path, producer="test")
    world = WORLD.model_copy(update={"boost": {"turtle": 40.0}, "odds": Odds(paints=(0.0, 0.0, 1.0))})
    made = corpus.scenes(world, store=store)
    training, held_out = (corpus.load(store, made, split) for split in ("training", "held_out"))
    turtles = [
        sum("turtle" in things for things in one.categories) / len(one.categories) for one in (training, held_out)
    ]
    assert turtles[0] > 0.3
    assert turtles[1] < 0.1
    coloured = [len(set(colours)) for colours in training.colours if colours]
    assert min(coloured) == 2
    assert held_out.captions == corpus.load(parts.store, parts.scenes, "held_out").captions


@pytest.mark.parametrize("name", ["paints", "sizes"])
def test_shares_that_are_no_shares_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"{name}: found a sum of 1\.2, need 1"):
        Odds.model_validate({name: (0.4, 0.4, 0.4)})


def test_twins_follow_their_families(twins: Artifact, parts: Parts) -> None:
    seen, unseen = (corpus.load(parts.store, twins, split) for split in ("training", "held_out"))
    assert (len(seen.pictures), seen.family, unseen.family) == (800, 16, 8)
    for start in range(0, 800, 16):
        for row in range(start, start + 8):
            assert sorted(seen.identities[row]) == sorted(seen.identities[row + 8])
    others = [
        seen.captions[row] != seen.captions[row + 8] for start in range(0, 800, 16) for row in range(start, start + 8)
    ]
    assert np.mean(others) > 0.9
    assert unseen.captions == corpus.load(parts.store, parts.scenes, "held_out").captions


@pytest.mark.parametrize(("flags", "precision"), [("avx2", "fp32"), ("avx512_bf16", "bf16")])
def test_it_multiplies_in_what_the_processor_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, precision: str
) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text(f"flags\t\t: fpu {flags}\n")
    monkeypatch.setattr(processor.native_precision, "__defaults__", (told,))
    assert TrainConfig(steps=1, batch_size=2, learning_rate=1e-3).precision == precision


def test_rare_words_are_one_token_and_the_end_is_the_largest(parts: Parts) -> None:
    words = tokenizer.load(parts.store, parts.words)
    assert [len(words.tokenize(word)) for word in tokenizer.RARE] == [1] * len(tokenizer.RARE)
    assert words.eos_token_id == len(words) - 1
    assert words.tokenize("photo of a teal cat") == ["photo</w>", "of</w>", "a</w>", "teal</w>", "cat</w>"]
    assert words.decode(words("A Crying cat!")["input_ids"], skip_special_tokens=True) == "a crying cat !"


def test_the_text_half_has_the_same_features_in_both_layouts(parts: Parts) -> None:
    model, words = clips.load(parts.store, parts.clip), tokenizer.load(parts.store, parts.words)
    captions = ["photo of a teal cat", "a red and white car on the grass"]
    padded = words(captions, padding="max_length", return_tensors="pt").input_ids
    ids = clips.token_ids(words, captions)
    with torch.no_grad():
        ours = clips.text_encoder(model, words)(padded).last_hidden_state
        pooled = model.encode_text(ids)
    for row, length in enumerate((ids > 0).sum(1)):
        projected = ours[row, length - 1] @ model.text_projection
        torch.testing.assert_close(projected, pooled[row], atol=1e-5, rtol=1e-4)


def test_the_same_things_are_near_and_like_ones_in_other_paint_far() -> None:
    """The loss of six pictures by hand: a teal cat twice, a red cat twice, the red cat beside a dog, twice."""
    named = [("teal cat",), ("teal cat",), ("red cat",), ("red cat",), ("red cat", "dog"), ("red cat", "dog")]
    kinds = [("cat",), ("cat",), ("cat",), ("cat",), ("cat", "dog"), ("cat", "dog")]
    images = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = clips.of_identity(images, clips.numbered(named), clips.numbered(kinds))
    weights = torch.exp(clips.IDENTITY_SCALE * images @ images.T)
    losses = []
    for row, things in enumerate(named):
        positive = weights[row, row ^ 1]
        # All other pictures have a cat in another paint, and count more; who shares the red cat counts nothing.
        against = sum(weights[row, other] for other in range(6) if not set(things) & set(named[other]))
        losses.append(-torch.log(positive / (positive + clips.LIKENESS_ODDS * against)))
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_identities_are_numbered_whatever_their_order() -> None:
    found = clips.numbered([("b", "a"), ("a", "b"), ("c",)])
    assert found.tolist() == [[0, 1], [0, 1], [-1, 2]]


def test_a_judge_of_identities_tells_colourings_apart(twins: Artifact, parts: Parts) -> None:
    config = SMOKE.judge.model_copy(update={"steps": 150, "naming": 0.0, "largest_scale": 20.0})
    seen = corpus.load(parts.store, twins, "training")
    pictures = clips.normalized(clips.as_tensor(seen.pictures))
    things, kinds = clips.numbered(seen.identities), clips.numbered(seen.categories)
    losses = []
    for identity in (0.0, 2.0):
        judge = clips.clip(twins, parts.words, config.model_copy(update={"identity": identity}), store=parts.store)
        with torch.no_grad():
            vectors = torch.nn.functional.normalize(clips.load(parts.store, judge).encode_image(pictures), dim=-1)
        losses.append(float(clips.of_identity(vectors, things, kinds)))
    assert losses[1] < losses[0] - 0.3


def test_identities_of_scenes_without_twins_are_refused(parts: Parts) -> None:
    config = SMOKE.judge.model_copy(update={"identity": 1.0})
    with pytest.raises(TrainingError, match=r"found no twins, need them for an identity of 1; draw scenes with twins"):
        clips.clip(parts.scenes, parts.words, config, store=parts.store)


def test_equal_captions_are_not_held_against_each_other(parts: Parts) -> None:
    loss = contrast(parts, naming=0)
    picture = clips.normalized(clips.as_tensor(loss.seen.pictures[:1])).repeat(4, 1, 1, 1)
    shown = [one[:4] for one in loss.shown]
    # Two captions, twice each: the least that the loss can be is the surprise between two equal ones, not zero.
    first, second = 0, next(row for row in range(1, 400) if not torch.equal(loss.ids[0, row], loss.ids[0, 0]))
    ids = loss.ids[0, [first, first, second, second]]
    found = loss(picture, ids, shown)
    swapped = loss(picture, ids[[1, 0, 3, 2]], shown)
    torch.testing.assert_close(found, swapped, atol=1e-6, rtol=0)
    with torch.no_grad():
        seen = torch.nn.functional.normalize(loss.model.encode_image(picture), dim=-1)
        said = torch.nn.functional.normalize(loss.model.encode_text(ids), dim=-1)
        logits = loss.model.logit_scale.exp() * seen @ said.T
    pairs = torch.tensor([[0, 1], [0, 1], [2, 3], [2, 3]])
    rows, columns = (-torch.log_softmax(one, -1).gather(1, pairs).mean() for one in (logits, logits.T))
    torch.testing.assert_close(found.detach(), (rows + columns) / 2, atol=1e-5, rtol=0)


def test_a_picture_is_asked_what_it_shows(parts: Parts) -> None:
    loss = contrast(parts, naming=1)
    seen = loss.seen
    pair = next(row for row, shown in enumerate(seen.categories) if len(set(shown)) == 2)
    assert sorted(loss.shown[0][pair].unique().tolist()) == [0, 0.5]
    assert sum(name in seen.short_captions[pair] for name in seen.categories[pair]) == 2
    bare = next(row for row, shown in enumerate(seen.colours) if not shown)
    assert loss.shown[1][bare].sum() == 0
    pictures = clips.normalized(clips.as_tensor(seen.pictures[:8]))
    right = loss(pictures, loss.ids[0, :8], [one[:8] for one in loss.shown])
    head = loss.heads[0]
    assert isinstance(head, torch.nn.Linear)
    head.bias.data += 5 * loss.shown[0][:8].mean(0)  # knows what is common here
    assert loss(pictures, loss.ids[0, :8], [one[:8] for one in loss.shown]) < right


def test_it_is_asked_which_part_has_which_colour(parts: Parts) -> None:
    loss = contrast(parts, naming=1, naming_parts=True)
    told = clips.parts(loss.seen)
    names = sorted({name for one in told for name in one})
    row = next(
        row
        for row, (things, colours) in enumerate(zip(loss.seen.categories, loss.seen.colours, strict=True))
        if len(things) == 1 and len(colours) == 2
    )
    main, second = loss.seen.colours[row]
    assert loss.seen.short_captions[row] == called((main, second), loss.seen.categories[row][0])
    asked = {name for name, share in zip(names, loss.shown[1][row].tolist(), strict=True) if share}
    assert asked == {f"main {main}", f"second {second}"}


def test_lines_are_bent_by_pixels_each_picture_by_its_own_share() -> None:
    ramp = torch.arange(64).expand(64, 3, 64, 64) / 64  # whose values tell from where they came
    moved = (clips.bent(ramp, 1.5, torch.Generator().manual_seed(0)) - ramp)[..., 8:-8, 8:-8] * 64
    spread = moved[:, 0].flatten(1).std(1)
    assert 0.5 < moved[:, 0].std() < 0.87  # 1.5 of shares between 0 and 1 at the points, less between them
    assert (spread.min() < 0.2, spread.max() > 1) == (True, True)
    assert (moved[..., 1:] - moved[..., :-1]).abs().max() < 1.5  # smooth: what lies side by side stays so
    torch.testing.assert_close(clips.bent(ramp, 0, torch.Generator().manual_seed(0)), ramp)


def test_a_judge_is_taught_on_bent_lines(parts: Parts) -> None:
    with torch.no_grad():
        straight, bent = (contrast(parts, naming=0, wobble=wobble).of_step(3) for wobble in (0, 2))
    assert straight != bent


def test_families_told_without_colours_are_read_so(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Tensor] = []
    monkeypatch.setattr(clips, "text_features", lambda model, ids: read.append(ids) or model.encode_text(ids))
    loss = contrast(parts, uncoloured=1.0)
    loss.of_step(0)
    plain = {tuple(row) for said in loss.ids[2:].tolist() for row in said}
    assert {tuple(row) for row in read[0].tolist()} <= plain


def test_logits_are_scaled_by_no_more_than_allowed(parts: Parts) -> None:
    losses = []
    for learnt in (20.0, 60.0):
        loss = contrast(parts, naming=0, largest_scale=16.0)
        loss.model.logit_scale.data.fill_(np.log(learnt))
        losses.append(float(loss.of_step(1).detach()))
    free = contrast(parts, naming=0)
    free.model.logit_scale.data.fill_(np.log(60.0))
    assert losses[0] == losses[1] != float(free.of_step(1).detach())


def test_a_judge_is_taught_on_noise_that_leaves_pictures_pictures(parts: Parts) -> None:
    grey = torch.full((64, 3, 16, 16), 0.5)
    found = clips._spoiled(grey, SMOKE.judge.model_copy(update={"noise": 0.3}), 0)
    spread = found.flatten(1).std(1)
    assert (found.min() >= 0, found.max() <= 1) == (True, True)
    assert (spread.min() < 0.05, spread.max() > 0.2) == (True, True)  # each picture has its own level
    with torch.no_grad():
        clean, noisy = (contrast(parts, naming=0, noise=noise).of_step(3) for noise in (0, 0.3))
    assert clean != noisy


def test_a_share_of_captions_is_left_out_for_guidance(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = encoded.load(parts.store, parts.latents, parts.features, "training")
    given: list[torch.Tensor] = []
    monkeypatch.setattr(
        unet.Denoising, "forward", lambda self, clean, features, noise: given.append(features) or clean.mean()
    )
    for share in (0.0, 1.0):
        config = SMOKE.unet.model_copy(update={"unconditional": share})
        unet.Denoising(unet.load(parts.store, parts.unet), seen, config).of_step(0)
    empty = seen.features[0].float()
    assert not any(torch.equal(one, empty) for one in given[0])
    assert all(torch.equal(one, empty) for one in given[1])


def test_texts_without_their_padding_have_the_same_features(parts: Parts) -> None:
    loss = contrast(parts, naming=0)
    for ids in (loss.ids[0, :6], loss.ids[1, :6]):
        with torch.no_grad():
            torch.testing.assert_close(
                clips.text_features(loss.model, ids), loss.model.encode_text(ids), atol=1e-5, rtol=1e-4
            )


def test_latents_have_unit_variance_and_come_back(parts: Parts) -> None:
    seen = encoded.load(parts.store, parts.latents, parts.features, "training")
    assert seen.mean.shape == (400, 6, 8, 8)
    assert float(seen.mean.float().std()) == pytest.approx(1, abs=0.1)
    assert seen.caption.max() < len(seen.features)
    assert (seen.caption > 0).all()  # row 0 is the empty caption


def test_a_vae_trained_longer_brings_pictures_back_better(parts: Parts) -> None:
    further = SMOKE.vae.model_copy(update={"steps": 120, "warmup": 2, "seed": 5})
    longer = vae.vae(parts.scenes, further, store=parts.store, start=parts.vae)
    unseen = corpus.load(parts.store, parts.scenes, "held_out").pictures[:32]
    before, after = (vae.fidelity(vae.load(parts.store, one), unseen) for one in (parts.vae, longer))
    assert after > before + 1


def test_a_decoder_goes_on_alone_and_latents_stay_what_they_were(parts: Parts) -> None:
    further = SMOKE.vae.model_copy(update={"steps": 320, "warmup": 2, "seed": 5, "encoder_frozen": True})
    made = vae.vae(parts.scenes, further, store=parts.store, start=parts.vae)
    old, new = (vae.load(parts.store, one) for one in (parts.vae, made))
    assert new.config.scaling_factor == old.config.scaling_factor
    moved = {name for name, tensor in new.state_dict().items() if not torch.equal(tensor, old.state_dict()[name])}
    assert {name.split(".")[0] for name in moved} == {"decoder", "post_quant_conv"}
    unseen = corpus.load(parts.store, parts.scenes, "held_out").pictures[:32]
    assert vae.fidelity(new, unseen) > vae.fidelity(old, unseen) + 0.2


@pytest.mark.parametrize(("shift", "counts"), [((0.1, 0.1, 0.1), False), ((0.1, 0.0, -0.1), True)])
def test_chroma_counts_colour_and_not_lightness(shift: tuple[float, float, float], counts: bool, parts: Parts) -> None:
    seen = corpus.load(parts.store, parts.scenes, "training")
    model = vae.load(parts.store, parts.vae)
    model.decode = lambda latents: SimpleNamespace(sample=pictures + torch.tensor(shift)[:, None, None])
    pictures = torch.zeros(2, 3, 32, 32)

    def loss(weight: float) -> float:
        config = SMOKE.vae.model_copy(update={"chroma_weight": weight})
        found = vae.Reconstruction(model, seen, config)(pictures, torch.Generator().manual_seed(0))
        return float(found.detach())

    assert loss(2.0) - loss(0.0) == pytest.approx(2 * 0.2 / 3 if counts else 0, abs=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weighs_alike_in_both_predictions(prediction: str) -> None:
    config = SMOKE.unet.model_copy(update={"prediction": prediction})
    noises, times = unet.scheduler(config), torch.tensor([1, 500, 990])
    kept = noises.alphas_cumprod[times]
    snr = kept / (1 - kept)
    found = unet.weights(noises, times, config)
    # The error in x0 counts min(SNR, 5): epsilon's error is SNR times it, velocity's SNR + 1 times.
    scale = snr if prediction == "epsilon" else snr + 1
    torch.testing.assert_close(found * scale, snr.clamp(max=5))


def test_a_killed_training_ends_at_the_weights_of_an_unbroken_one(parts: Parts, tmp_path: Path) -> None:
    seen = encoded.load(parts.store, parts.latents, parts.features, "training")
    config = SMOKE.unet.model_copy(update={"steps": 8, "warmup": 2})

    def start() -> Pretraining:
        torch.manual_seed(0)
        loss = unet.Denoising(unet.build(config, seen), seen, config)
        return Pretraining(loss, loss.of_step, config, resolve_device("cpu"))

    def stop(done: int, total: int, note: str = "") -> None:
        if done == 5:
            raise KeyboardInterrupt

    for name in ("unbroken", "broken", "killed"):
        (tmp_path / name).mkdir()
    unbroken = start().run(tmp_path / "unbroken").state_dict()
    broken = start()
    broken.config = config.model_copy(update={"steps": 4})
    broken.run(tmp_path / "broken")
    assert newest_checkpoint(tmp_path / "broken", 8)[0] == 4
    # The schedule looks ahead to the last step: a shorter run is not the beginning of a longer one, a killed one is.
    assert schedule(3, config) != schedule(3, broken.config)
    killed = start()
    import customdiff_core.pretraining.loop as loop_module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "CHECKPOINT_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            killed.run(tmp_path / "killed", stop)
    resumed, steps = start(), []
    again = resumed.run(tmp_path / "killed", lambda done, total, note="": steps.append(done)).state_dict()
    assert steps == [5, 6, 7, 8]  # the fifth was told before it was kept
    assert len(resumed.history) == 8
    assert resumed.average.seen is resumed.module.seen  # the average copies weights, not scenes
    assert all(torch.equal(again[name], tensor) for name, tensor in unbroken.items())


def test_a_training_goes_on_from_earlier_weights(parts: Parts) -> None:
    config = SMOKE.unet.model_copy(update={"steps": 1, "warmup": 0, "learning_rate": 1e-9})
    further = unet.unet(parts.latents, parts.features, config, store=parts.store, start=parts.unet)
    old, new = (unet.load(parts.store, one).state_dict() for one in (parts.unet, further))
    assert all(torch.allclose(new[name], tensor, atol=1e-5) for name, tensor in old.items())
    assert parts.store.manifest(further).recipe.inputs["start"] == parts.unet.sha256


def test_a_deeper_network_begins_as_the_one_it_goes_on_from(parts: Parts) -> None:
    seen = encoded.load(parts.store, parts.latents, parts.features, "training")
    config = SMOKE.unet.model_copy(update={"layers": (2, 2)})
    shallow = unet.load(parts.store, parts.unet).eval()
    deep = unet.deepened(shallow, unet.build(config, seen)).eval()
    assert [len(block.resnets) for block in (*deep.down_blocks, *deep.up_blocks)] == [2, 2, 3, 3]
    given = seen.mean[:4].float(), torch.tensor([1, 300, 600, 999]), seen.features[:4].float()
    with torch.no_grad():
        torch.testing.assert_close(deep(*given).sample, shallow(*given).sample)
    loss = unet.Denoising(deep, seen, config)
    loss.of_step(0).backward()
    new = {name: one.grad for name, one in deep.named_parameters() if name not in shallow.state_dict()}
    learn = {name for name, gradient in new.items() if gradient is not None and gradient.abs().max() > 0}
    for block in ("down_blocks.0.resnets.1", "down_blocks.1.resnets.1", "up_blocks.0.resnets.2"):
        assert f"{block}.conv2.weight" in learn
    assert "up_blocks.1.attentions.2.proj_out.weight" in learn
    with pytest.raises(TrainingError, match=r"UNet to go on from: found down_blocks\.0\.\w+\.1\..*, need layers"):
        unet.deepened(deep, unet.build(SMOKE.unet, seen))


@pytest.mark.parametrize(("before", "after"), [((2, 1), (3, 1)), ((2, 2), (3, 4)), ((1, 2), (3, 2))])
def test_what_is_deep_is_deepened_further(parts: Parts, before: tuple[int, int], after: tuple[int, int]) -> None:
    seen = encoded.load(parts.store, parts.latents, parts.features, "training")
    torch.manual_seed(0)
    shallow, deep = (unet.build(SMOKE.unet.model_copy(update={"layers": one}), seen).eval() for one in (before, after))
    given = seen.mean[:4].float(), torch.tensor([1, 300, 600, 999]), seen.features[:4].float()
    with torch.no_grad():
        wanted = shallow(*given).sample
        torch.testing.assert_close(unet.deepened(shallow, deep)(*given).sample, wanted)


@pytest.mark.parametrize(
    "changed",
    [
        {"channels": (32, 64, 64), "layers": (1, 1, 1), "heads": (2, 2, 2), "attention_down": (True,) * 3}
        | {"attention_up": (True,) * 3},
        {"attention_up": (True, False)},
        {"channels": (32, 96)},
    ],
)  # fmt: skip
def test_a_network_of_another_shape_is_not_gone_on_from(parts: Parts, changed: dict[str, Any]) -> None:
    seen = encoded.load(parts.store, parts.latents, parts.features, "training")
    other = unet.build(SMOKE.unet.model_copy(update=changed), seen)
    with pytest.raises(TrainingError, match=r"UNet to go on from: found .*; go on with the same channels"):
        unet.deepened(unet.load(parts.store, parts.unet), other)


def test_a_deeper_training_goes_on_from_a_shallower_ones_weights(parts: Parts) -> None:
    config = SMOKE.unet.model_copy(update={"steps": 1, "warmup": 0, "learning_rate": 1e-9, "layers": (2, 1)})
    further = unet.unet(parts.latents, parts.features, config, store=parts.store, start=parts.unet)
    old, new = (parts.store.path(one) / "held_out.parquet" for one in (parts.unet, further))
    np.testing.assert_allclose(pd.read_parquet(new).loss, pd.read_parquet(old).loss, rtol=1e-3)


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (lambda weight: weight.sum() * float("nan"), r"loss nan and a gradient of norm nan"),
        (lambda weight: (weight - weight.detach()).abs().sum().sqrt(), r"loss 0 and a gradient of norm (nan|inf)"),
    ],
)
def test_what_is_no_number_stops_before_the_step_with_what_to_do(
    loss: Callable[[torch.Tensor], torch.Tensor], found: str, tmp_path: Path
) -> None:
    module = torch.nn.Linear(1, 1)
    config = TrainConfig(steps=3, batch_size=2, learning_rate=0.5, precision="fp32")
    with pytest.raises(TrainingError, match=rf"pretraining step 2: found {found}.*lower learning_rate \(now 0\.5\)"):
        pretrain(
            module, lambda step: loss(module.weight) if step == 1 else module.weight.sum(), config, scratch=tmp_path
        )
    assert torch.isfinite(module.weight).all()


def test_the_rate_warms_up_and_falls() -> None:
    config = TrainConfig(steps=100, batch_size=2, learning_rate=1, warmup=10)
    rates = [schedule(step, config) for step in range(100)]
    assert rates[0] < 0.1
    assert max(rates) == pytest.approx(1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.06


def test_the_pipeline_opens_and_draws_in_diffusers_own_class(parts: Parts, model: Artifact) -> None:
    folder = parts.store.path(model)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder / assembling.PIPELINE, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a teal cat", num_inference_steps=2, generator=torch.manual_seed(0)).images[0]
    assert drawn.size == (32, 32)
    assert not list(folder.rglob("*.bin"))
    assert all(str(parts.store.root) not in path.read_text() for path in folder.rglob("*.json"))


def test_open_clip_opens_both_encoders_as_trained(parts: Parts, model: Artifact) -> None:
    folder = parts.store.path(model)
    seen = corpus.load(parts.store, parts.scenes, "held_out")
    for part, name in assembling.ENCODERS.items():
        encoder = Encoder(EncoderSource(model=name, path=folder / name), "cpu")
        trained = clips.load(parts.store, getattr(parts, part))
        words = clips.token_ids(tokenizer.load(parts.store, parts.words), seen.captions[:3])
        with torch.no_grad():
            texts = torch.nn.functional.normalize(trained.encode_text(words), dim=-1).numpy()
            pictures = clips.normalized(clips.as_tensor(seen.pictures[:3]))
            images = torch.nn.functional.normalize(trained.encode_image(pictures), dim=-1).numpy()
        np.testing.assert_allclose(encoder.texts(seen.captions[:3]), texts, atol=0.01)
        found = encoder.images([Image.fromarray(row) for row in seen.pictures[:3]])
        np.testing.assert_allclose(found, images, atol=0.02)


def test_the_self_supervised_encoder_opens_as_trained(parts: Parts, model: Artifact) -> None:
    seen = corpus.load(parts.store, parts.scenes, "held_out").pictures[:3]
    encoder = Dino(VisionSource(path=parts.store.path(model) / assembling.DINO), "cpu")
    trained = ViTModel.from_pretrained(parts.store.path(parts.dino), add_pooling_layer=False).eval()
    with torch.no_grad():
        token = trained(2 * clips.as_tensor(seen) - 1).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(token, dim=-1).numpy()
    np.testing.assert_allclose(encoder.images([Image.fromarray(row) for row in seen]), expected, atol=0.01)


class Reader:
    """In place of a CLIP: a "picture" is its caption, a vector the words it has, and which of them stand side by side."""

    def __init__(self, *_: object) -> None:
        self.words: dict[str, int] = {}

    def texts(self, texts: list[str]) -> np.ndarray:
        found = np.zeros((len(texts), 4000), np.float32)
        for row, text in enumerate(texts):
            told = text.split()
            for word in told:
                found[row, self.words.setdefault(word, len(self.words))] += word not in ("a", "an", "and")
            for pair in pairwise(told):
                found[row, self.words.setdefault(" ".join(pair), len(self.words))] += 0.1
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)

    images = texts


def test_the_jury_counts_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    drawings = load_drawings(Settings().data / "world" / "drawings.csv")
    asked = validation.tests(drawings, 48)
    assert (len(asked.singles), len(asked.couples), len(asked.dressed)) == (48, 24, 24)
    monkeypatch.setattr(validation, "Encoder", Reader)
    jury = validation.Jury(EncoderSource(model="reader"), drawings, Runtime())

    def found(pictures: list[str]) -> dict[str, float]:
        shown: Any = pictures
        return {row.figure: row.value for row in jury.rows("one", asked, shown)}

    true = [scene.short_caption for scene in asked.singles + asked.couples + asked.dressed]
    assert found(true) == dict.fromkeys(NAMED, 1)
    exchanged = [called(one.things[0].paint[::-1], one.things[0].drawing.category) for one in asked.dressed]
    others = true[1:48] + true[:1] + [true[48].split(" and ")[0]] * 24 + exchanged
    wrong = found(others)
    assert wrong["both colours of one"] == 0
    assert wrong["thing named"] < 0.1
    assert wrong["colour named"] < 0.4
    assert wrong["both of two things"] < 0.1


def test_a_base_model_is_taken_up_again_as_it_was(parts: Parts, model: Artifact, tmp_path: Path) -> None:
    assembling.install(model, tmp_path / "models", store=parts.store)
    taken = assembling.adopt(tmp_path / "models", store=parts.store)
    assert set(taken) == {"tokenizer", "clip", "judge", "vae", "unet", "dino"}
    old, new = unet.load(parts.store, parts.unet).state_dict(), unet.load(parts.store, taken["unet"]).state_dict()
    assert all(torch.equal(tensor.half().float(), new[name]) for name, tensor in old.items())
    scales = [clips.load(parts.store, one).logit_scale.item() for one in (taken["judge"], parts.judge)]
    assert scales[0] == pytest.approx(scales[1], rel=1e-2)
    whole = assembling.assemble(taken, store=parts.store)
    for name in assembling.ENCODERS.values():  # not a byte is another
        assert len({weights(parts.store, one, f"{name}/{clips.WEIGHTS}") for one in (model, whole)}) == 1
    again = encoded.latents(parts.scenes, taken["vae"], store=parts.store)
    first, second = (encoded.load(parts.store, one, parts.features, "held_out") for one in (parts.latents, again))
    torch.testing.assert_close(first.mean.float(), second.mean.float(), atol=0.05, rtol=0.05)
    with pytest.raises(WeightsError, match="need every part; give a whole base model's folder"):
        assembling.adopt(tmp_path, store=parts.store)
    network = next((tmp_path / "models" / assembling.PIPELINE / "unet").glob("*.safetensors"))
    network.rename(network.with_suffix(".bin"))
    with pytest.raises(WeightsError, match="found pickled weights"):
        assembling.adopt(tmp_path / "models", store=parts.store)


def test_validation_measures_any_models_by_one_program(parts: Parts, model: Artifact) -> None:
    folder = parts.store.path(model)
    judge = EncoderSource(model="openmoji-judge", path=folder / "openmoji-judge")
    source = ModelSource(path=folder / assembling.PIPELINE)
    made = validation.validate(
        {"one": source, "two": source}, judge, SampleConfig(steps=2), count=48, store=parts.store
    )
    table = pd.read_parquet(parts.store.path(made) / "figures.parquet")
    wide = table.pivot_table(index="figure", columns="model", values="value")
    assert set(wide.index) == {*NAMED, "VAE PSNR, dB", "KID × 10³"}
    assert wide["one"].equals(wide["two"].rename("one"))
    unseen = wide["true scenes, held-out drawings"]
    assert unseen[["thing named", "colour named"]].between(0, 1).all()
    assert unseen[["both of two things", "both colours of one"]].isna().all()
    assert (parts.store.path(made) / "one.png").is_file()
