import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from customdiff_core import images, tables, text
from customdiff_core.config import Runtime, SampleConfig
from customdiff_core.errors import DeviceMemoryError, DiskFullError
from customdiff_core.sampling import draw_images, generate, load_model, make_sampler, sample_latents
from customdiff_core.seeding import torch_generator

QUICK = SampleConfig(steps=3, guidance_scale=4, batch_size=8)
DDIM = SampleConfig(sampler="ddim", steps=4, guidance_scale=4, batch_size=8)
PROMPTS = ["a cat on a red background", "a dog", "photo of a rocket"]


@pytest.fixture(scope="module")
def model(chain):
    """The base model; these tests change nothing in it."""
    return load_model(chain.profile, None, chain.store, Runtime(device="cpu"))


def drawn(model, prompts=PROMPTS, seeds=(0, 1), config: SampleConfig = QUICK) -> np.ndarray:
    return np.stack([np.asarray(image) for image in draw_images(*model, prompts, seeds, config)]).astype(int)


def test_equal_seeds_draw_equal_images_and_others_do_not(model):
    one = drawn(model)
    assert one.shape == (6, 64, 64, 3)
    assert np.array_equal(drawn(model), one)
    assert len({image.tobytes() for image in one}) == 6
    assert not np.array_equal(drawn(model, seeds=(2, 3)), one)


def test_the_global_random_state_does_not_matter(model):
    torch.manual_seed(1)
    one = drawn(model, PROMPTS[:1], (0,))
    torch.manual_seed(2)
    assert np.array_equal(drawn(model, PROMPTS[:1], (0,)), one)


@pytest.mark.parametrize("config", [QUICK, DDIM.model_copy(update={"eta": 1.0})], ids=["dpm-solver++", "ddim eta 1"])
def test_the_batch_does_not_matter(model, config: SampleConfig):
    whole = drawn(model, config=config)
    for size in (1, 4):
        parts = drawn(model, config=config.model_copy(update={"batch_size": size}))
        assert np.abs(parts - whole).max() <= 2


def test_an_image_depends_on_its_number_and_seed_and_not_on_its_company(model):
    assert np.abs(drawn(model, PROMPTS[:1], (1,)) - drawn(model)[1]).max() <= 2


def test_bf16_draws_the_same_images_nearly(model):
    narrow = drawn(model, config=QUICK.model_copy(update={"precision": "bf16"}))
    whole = drawn(model)
    assert not np.array_equal(narrow, whole)
    assert np.abs(narrow - whole).mean() < 0.1 * np.abs(whole - drawn(model, seeds=(2, 3))).mean()


def test_images_come_prompt_by_prompt_and_progress_counts_them(model):
    said: list[tuple[int, int]] = []
    config = QUICK.model_copy(update={"batch_size": 4})
    draw_images(*model, PROMPTS, (0, 1), config, lambda done, total, note="": said.append((done, total)))
    assert said == [(4, 6), (6, 6)]
    same = ["a cat", "a dog", "a cat"]
    three = drawn(model, same, (0,))
    assert not np.array_equal(three[0], three[2])  # the same words, another prompt number: another noise


def test_the_prompt_is_followed(model):
    """With guidance, a red background is red: the embedded weights are real."""
    config = SampleConfig(steps=12, guidance_scale=4)
    red, blue = drawn(model, ["a cat on a red background", "a cat on a blue background"], (0,), config)
    border = np.ones((64, 64), bool)
    border[4:-4, 4:-4] = False
    assert red[border][:, 0].mean() > red[border][:, 2].mean() + 50
    assert blue[border][:, 2].mean() > blue[border][:, 0].mean() + 50


def test_base_and_customized_model_start_from_the_same_noise(chain, model):
    customized = load_model(chain.profile, chain.delta, chain.store, Runtime(device="cpu"))
    first: list[torch.Tensor] = []

    for components, vae in (model, customized):
        seen: list[torch.Tensor] = []
        handle = components.unet.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].clone()))
        draw_images(components, vae, ["a cat", "a dog"], (5,), QUICK)
        handle.remove()
        first.append(seen[0])
    assert torch.equal(*first)
    expected = torch.stack(
        [torch.randn(6, 16, 16, generator=torch_generator("sample", number, 5)) for number in (0, 1)]
    )
    assert torch.equal(first[0][:2], expected)
    assert torch.equal(first[0][2:], expected)  # both halves of guidance in one forward


def test_ddim_with_eta_1_repeats_and_is_another_path_than_eta_0(model):
    config = DDIM.model_copy(update={"eta": 1.0})
    one = drawn(model, PROMPTS[:1], config=config)
    assert np.array_equal(drawn(model, PROMPTS[:1], config=config), one)
    assert not np.array_equal(drawn(model, PROMPTS[:1], config=DDIM), one)


@pytest.mark.parametrize("kind", [PNDMScheduler, DPMSolverMultistepScheduler])
def test_ddim_does_not_clip_whatever_the_models_schedule_leaves_unsaid(model, tmp_path, kind: type):
    """A file without clip_sample, as that of a model saved with another scheduler."""
    kind(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in stated.items() if name != "clip_sample"}))
    schedule = DDPMScheduler.from_pretrained(tmp_path)
    assert schedule.config.clip_sample
    sampler = make_sampler(dataclasses.replace(model[0], noise_scheduler=schedule), DDIM)
    assert not sampler.config.clip_sample
    assert sampler.config.beta_schedule == "scaled_linear"


def test_dpm_solver_ignores_eta(model):
    config = QUICK.model_copy(update={"eta": 1.0})
    assert np.array_equal(drawn(model, PROMPTS[:1], config=config), drawn(model, PROMPTS[:1]))


def test_guidance_1_is_the_conditional_model_alone(model):
    components, _ = model
    with torch.no_grad():
        features = text.encode(components, ["", "a cat", "a rocket"])
    config = QUICK.model_copy(update={"guidance_scale": 1.0})
    one, other = (
        sample_latents(
            components, features.take(torch.tensor([1])), features.take(torch.tensor([row])), [(0, 0)], config
        )
        for row in (0, 2)
    )
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    stronger = sample_latents(
        components, features.take(torch.tensor([1])), features.take(torch.tensor([0])), [(0, 0)], QUICK
    )
    assert not torch.allclose(one, stronger, atol=1e-1)


@pytest.mark.parametrize("guidance", [1.5, 6.0])
def test_ddim_draws_what_diffusers_own_pipeline_draws(openmoji, model, guidance: float):
    components, vae = model
    config = DDIM.model_copy(update={"guidance_scale": guidance, "steps": 6})
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.unet,
        scheduler=DDIMScheduler.from_pretrained(openmoji.model.path, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.stack(
        [torch.randn(6, 16, 16, generator=torch_generator("sample", number, 0)) for number in range(3)]
    )
    theirs = pipeline(
        PROMPTS, latents=latents, num_inference_steps=6, guidance_scale=guidance, eta=0.0, output_type="np"
    ).images  # pyright: ignore[reportAttributeAccessIssue]
    ours = drawn(model, PROMPTS, (0,), config)
    assert np.abs(ours - theirs * 255).max() <= 2
    assert len({image.tobytes() for image in ours}) == 3


def test_a_gpu_without_room_says_which_settings_need_less(model, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("customdiff_core.sampling.sample_latents", full)
    with pytest.raises(
        DeviceMemoryError, match=r"^drawing: found no GPU memory left .*; lower sample\.batch_size or set"
    ):
        drawn(model)


def test_the_stage_keeps_every_image_with_its_recipe(chain):
    made = generate(
        tuple(PROMPTS), (3, 4), None, chain.profile, QUICK, store=chain.store, runtime=Runtime(device="cpu")
    )
    table = tables.read(chain.store, made, "samples")
    assert made.rows == len(table) == 6
    assert table["prompt"].tolist() == [prompt for prompt in PROMPTS for _ in range(2)]
    assert table["prompt_id"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table["seed"].tolist() == [3, 4] * 3
    assert (set(table["sampler"]), set(table["steps"])) == ({"dpm-solver++"}, {3})
    assert set(table["guidance"]) == {4.0}
    assert images.open_trusted(table["image"][5]).size == (64, 64)


def test_the_stage_draws_once_and_a_customized_model_draws_others(chain):
    def progress(done: int, total: int, note: str = "") -> None:
        raise AssertionError("drawn again")

    prompts, runtime = ("a crying <teal-cat> cat",), Runtime(device="cpu")
    made = generate(prompts, (0,), chain.delta, chain.profile, QUICK, store=chain.store, runtime=runtime)
    again = generate(
        prompts, (0,), chain.delta, chain.profile, QUICK, store=chain.store, runtime=runtime, progress=progress
    )
    assert again == made
    base = generate(prompts, (0,), None, chain.profile, QUICK, store=chain.store, runtime=runtime)
    one, other = (tables.read(chain.store, artifact, "samples")["image"][0] for artifact in (base, made))
    assert one != other


def test_a_killed_drawing_goes_on_at_the_batch_and_ends_at_the_same_images(
    chain, store, monkeypatch: pytest.MonkeyPatch
):
    config = QUICK.model_copy(update={"batch_size": 2})

    class Killed(BaseException):
        pass

    def die(done: int, total: int, note: str = "") -> None:
        if done == 4:
            raise Killed

    def run(place, **options):
        return generate(tuple(PROMPTS), (0, 1), None, chain.profile, config, store=place, **options)

    with pytest.raises(Killed):
        run(store, progress=die)
    batches = sorted(store.root.glob("checkpoints/samples/*/batch-*.npy"))
    assert len(batches) == 2
    batches[1].write_bytes(batches[1].read_bytes()[:-1] + b"x")  # damaged: drawn again
    drawn: list[int] = []
    original = sample_latents
    monkeypatch.setattr(
        "customdiff_core.sampling.sample_latents", lambda *args: (drawn.append(len(args[3])), original(*args))[1]
    )
    whole = run(store)
    assert drawn == [2, 2]
    assert not list(store.root.glob("checkpoints/samples/*"))
    unbroken = generate(tuple(PROMPTS), (0, 1), None, chain.profile, config, store=chain.store)
    assert whole == unbroken


def test_pictures_that_find_no_room_are_not_drawn_again(chain, store, monkeypatch: pytest.MonkeyPatch):
    def full(path, rows, *rest):
        raise DiskFullError("full")

    def run():
        return generate(tuple(PROMPTS), (0,), None, chain.profile, QUICK, store=store)

    with monkeypatch.context() as patch:
        patch.setattr(tables, "write", full)
        with pytest.raises(DiskFullError):
            run()
    monkeypatch.setattr("customdiff_core.sampling.sample_latents", None)
    assert len(tables.read(store, run(), "samples")) == 3
    assert not list(store.root.glob("checkpoints/samples/*"))
