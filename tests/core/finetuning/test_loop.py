import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from customdiff_core import concepts, tables, text
from customdiff_core.artifacts import Artifact, Store
from customdiff_core.augmentation import augment
from customdiff_core.config import AugmentConfig, Runtime
from customdiff_core.errors import ConfigError, TrainingError
from customdiff_core.finetuning import loop
from customdiff_core.finetuning.checkpoints import newest_checkpoint
from customdiff_core.finetuning.finetune import make_trainer
from customdiff_core.finetuning.loop import HISTORY, Trainer
from customdiff_core.retrieval.retrieve import retrieve
from customdiff_core.seeding import torch_generator
from customdiff_core.settings import REPOSITORY

Vectors = dict[str, torch.Tensor]
Row = tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]  # prompt, mean, log-variance, mask


class KilledError(Exception):
    """Stands for a machine that goes away."""


@pytest.fixture
def trainer(chain):
    def make(**update) -> Trainer:
        config = chain.finetune_config.model_copy(update=update)
        return make_trainer(
            (chain.concept,), (chain.training_set,), chain.profile, config, chain.store, Runtime(device="cpu")
        )

    return make


@pytest.fixture(scope="module")
def unbroken(chain, tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    """The state after 6 steps without a break."""
    config = chain.finetune_config
    one = make_trainer(
        (chain.concept,), (chain.training_set,), chain.profile, config, chain.store, Runtime(device="cpu")
    )
    one.run(tmp_path_factory.mktemp("unbroken"), 100)
    return snapshot(one)


def snapshot(one: Trainer) -> Vectors:
    return {name: tensor.detach().clone() for name, tensor in one.state().items() if name != "seconds"}


def assert_bit_equal(one: Vectors, other: Vectors) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# The objective


def rows_of(store: Store, *sets: Artifact) -> list[Row]:
    """Read from the training sets' files alone: all their views, then all their regularization images."""
    found: dict[str, list[Row]] = {"concept": [], "regularization": []}
    for made in sets:
        latents = load_file(store.path(made) / "latents.safetensors")
        for row in tables.read(store, made, "examples").itertuples():
            mean, logvar, mask = (latents[f"{name}.64x64"][row.latent_row] for name in ("mean", "logvar", "mask"))
            found[row.role].append((row.prompt, mean, logvar, mask))
    return [*found["concept"], *found["regularization"]]


@torch.no_grad()
def objective(one: Trainer, rows: list[Row], views: int, generator: torch.Generator) -> tuple[float, float]:
    """Instance and prior loss, written out from the paper, the model's config and the schedule's formula."""
    prompts, *parts = zip(*rows, strict=True)
    mean, logvar, mask = (torch.stack(part) for part in parts)
    folder = REPOSITORY / "data" / "models" / "openmoji" / "openmoji-sd"
    scale = json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"]
    posterior, noise = (torch.randn(mean.shape, generator=generator) for _ in range(2))
    times = torch.randint(1000, (len(rows),), generator=generator)
    kept = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(dim=0)[times][:, None, None, None]
    clean = scale * (mean + torch.exp(logvar / 2) * posterior)
    ids = one.components.tokenizer(list(prompts), padding="max_length", return_tensors="pt").input_ids
    features = one.components.text_encoder(ids).last_hidden_state
    predicted = one.components.unet(kept.sqrt() * clean + (1 - kept).sqrt() * noise, times, features).sample
    error = (predicted - (kept.sqrt() * noise - (1 - kept).sqrt() * clean)).square().mean(dim=1, keepdim=True)
    inside = [float(error[view][mask[view] > 0].mean()) for view in range(views)]
    return sum(inside) / views, float(error[views:].mean())


def assert_is_the_objective(one: Trainer, rows: list[Row], views: list[int], priors: list[int]) -> None:
    seeds = (torch.Generator().manual_seed(5) for _ in range(2))
    with torch.no_grad():
        found = [float(loss) for loss in one.losses(torch.tensor(views), torch.tensor(priors), next(seeds))]
    instance, prior = objective(one, [rows[row] for row in (*views, *priors)], len(views), next(seeds))
    assert found == pytest.approx([3 * instance + 0.5 * prior, instance, prior], rel=1e-4)


def test_the_losses_are_the_papers_on_the_rows_own_latents_masks_and_prompts(chain, trainer):
    one, rows = trainer(instance_weight=3.0, prior_weight=0.5), rows_of(chain.store, chain.training_set)
    masked = next(number for number in range(12) if not rows[number][3].all())
    whole = next(number for number in range(12) if rows[number][3].all())
    assert_is_the_objective(one, rows, [masked, whole], [31, 14])


def test_of_two_concepts_every_row_keeps_its_latents_and_its_prompt(chain):
    """Training sets of different sizes, and regularization images of each concept's own class prompt."""
    dog, config = concepts.load("dog"), chain.retrieve_config.model_copy(update={"count": 7})
    beside = retrieve(dog, chain.index, chain.profile, config, store=chain.store)
    views = AugmentConfig(resolution=64, views=5)
    sets = (chain.training_set, augment(dog, beside, chain.profile, views, store=chain.store))
    training = chain.finetune_config.model_copy(update={"instance_weight": 3.0, "prior_weight": 0.5})
    runtime = Runtime(device="cpu")
    one = make_trainer((chain.concept, dog), sets, chain.profile, training, chain.store, runtime)
    rows = rows_of(chain.store, *sets)
    assert len(rows) == 12 + 5 + 24 + 7
    assert_is_the_objective(one, rows, [2, 12], [17, 40])
    assert_is_the_objective(one, rows, [16, 11], [47, 41])


# What is trained


def test_only_keys_values_and_rows_have_a_gradient(trainer):
    one = trainer()
    unet = [name for name, parameter in one.components.unet.named_parameters() if parameter.requires_grad]
    encoder = [name for name, parameter in one.components.text_encoder.named_parameters() if parameter.requires_grad]
    assert sorted(unet) == sorted(one.weights)
    assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in unet)
    assert encoder == ["text_model.embeddings.token_embedding.rows"]


def test_the_optimizer_holds_what_is_trained_and_not_one_number_more(trainer):
    one = trainer()
    one.train_step()
    numbers = sum(weight.numel() for weight in one.weights.values()) + one.rows["text_encoder"].numel()
    assert one.rows["text_encoder"].shape == (1, 192)
    state = one.optimizer.state_dict()["state"]
    assert len(state) == len(one.weights) + 1
    for slot in ("exp_avg", "exp_avg_sq"):
        assert sum(entry[slot].numel() for entry in state.values()) == numbers
    assert {slot for entry in state.values() for slot in entry} == {"exp_avg", "exp_avg_sq", "step"}


def test_everything_else_stays_bit_for_bit(trainer, tmp_path: Path):
    one = trainer(steps=2)
    networks = {"unet": one.components.unet, "text": one.components.text_encoder}
    before = {
        f"{net}.{name}": value.clone()
        for net, module in networks.items()
        for name, value in module.state_dict().items()
    }
    with torch.no_grad():
        plain = text.encode(one.components, ["photo of a cat", "a rocket", ""]).features
    one.run(tmp_path, 100)
    moved = {
        f"{net}.{name}"
        for net, module in networks.items()
        for name, value in module.state_dict().items()
        if not torch.equal(value, before[f"{net}.{name}"])
    }
    rows = "text.text_model.embeddings.token_embedding.rows"
    assert moved == {f"unet.{name}" for name in one.weights} | {rows}
    assert "text.text_model.embeddings.token_embedding.table.weight" in before
    with torch.no_grad():
        assert torch.equal(text.encode(one.components, ["photo of a cat", "a rocket", ""]).features, plain)


def test_training_lowers_the_loss_on_the_same_examples_and_noise(trainer, tmp_path: Path):
    one = trainer(steps=30)

    def instance_losses() -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([one.losses(*one.batch(n), torch_generator("train", 0, n))[1] for n in range(8)])

    before = instance_losses()
    one.run(tmp_path, 1000)
    assert instance_losses().mean() < 0.95 * before.mean()


def test_the_loss_is_four_to_one(trainer):
    loss, instance, prior, norm = trainer().train_step()
    assert loss == pytest.approx(4 * instance + prior, rel=1e-5)
    assert norm > 0
    weighed = trainer(instance_weight=1, prior_weight=0.5).train_step()
    assert weighed[0] == pytest.approx(instance + 0.5 * prior, rel=1e-5)
    assert HISTORY == ("loss", "instance_loss", "prior_loss", "gradient_norm")


def test_without_prior_preservation_no_regularization_image_is_used(trainer):
    one = trainer(prior_weight=0)
    assert len(one.batch(0)[1]) == 0
    loss, instance, prior, _ = one.train_step()
    assert prior == 0
    assert loss == pytest.approx(4 * instance)


def test_the_gradient_is_clipped(trainer):
    one = trainer(gradient_clip=1e-3)
    norm = one.train_step()[3]
    clipped = torch.stack([parameter.grad.norm() for parameter in one.trained.values()]).norm()
    assert norm > 1e-2
    assert clipped == pytest.approx(1e-3, rel=1e-3)


def test_the_modifier_token_has_a_learning_rate_of_its_own(trainer):
    one = trainer(learning_rate=1e-4, modifier_learning_rate=1e-2, weight_decay=0.0)
    weight = next(iter(one.weights.values()))
    before = [tensor.detach().clone() for tensor in (one.rows["text_encoder"], weight)]
    one.train_step()
    # Adam's first step moves every number by its learning rate.
    moved = [
        (now.detach() - then).abs().median().item()
        for now, then in zip((one.rows["text_encoder"], weight), before, strict=True)
    ]
    assert moved == pytest.approx([1e-2, 1e-4], rel=1e-2)


def test_fp16_on_a_cpu_stops_before_a_step(trainer, tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"precision: found fp16 on a CPU, need fp32 or bf16 there; set train\.precision"
    ):
        trainer(precision="fp16").run(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_fp16_training_scales_as_an_unbroken_one(trainer, tmp_path: Path):
    """The scaler alone, on a CPU: how often it held decides when it grows."""

    def scaled() -> Trainer:
        one = trainer()
        one.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
        return one

    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    unbroken, broken = scaled(), scaled()
    unbroken.run(tmp_path / "unbroken", 100)
    broken.config = broken.config.model_copy(update={"steps": 3})
    broken.run(tmp_path / "broken", 100)
    resumed = scaled()
    resumed.resume(tmp_path / "broken")
    assert resumed.scaler.state_dict() == broken.scaler.state_dict()
    resumed.run(tmp_path / "broken", 100)
    assert resumed.scaler.get_scale() == unbroken.scaler.get_scale() == 2048
    assert_bit_equal(snapshot(resumed), snapshot(unbroken))


def scaling(one: Trainer) -> Trainer:
    """With the scaler that fp16 has on a GPU; its factor is a power of two, so that no digit is lost."""
    one.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return one


def test_gradients_are_clipped_at_their_own_size_and_not_at_the_scaled_one(trainer):
    plain, scaled = trainer(gradient_clip=1e-3), scaling(trainer(gradient_clip=1e-3))
    norms = [one.train_step()[3] for one in (plain, scaled)]
    assert norms[0] > 1e-2
    assert norms[1] == norms[0]
    for name, tensor in scaled.trained.items():
        assert torch.equal(tensor.grad, plain.trained[name].grad)
        assert torch.equal(tensor, plain.trained[name])


def test_a_gradient_that_overflows_costs_a_step_and_a_smaller_scale_and_is_no_failure(trainer, tmp_path: Path):
    one, before = scaling(trainer(steps=2)), {}
    weight = next(iter(one.weights.values()))
    hook = weight.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))

    def look(state: Trainer) -> None:
        if state.step == 1:
            assert all(torch.equal(tensor, before[name]) for name, tensor in state.trained.items())
            hook.remove()

    before |= {name: tensor.detach().clone() for name, tensor in one.trained.items()}
    one.run(tmp_path, 100, look)
    assert one.scaler.get_scale() == 512
    assert [losses[3] > 0 for losses in one.history] == [False, True]
    assert all(not torch.equal(tensor, before[name]) for name, tensor in one.trained.items())


def test_bf16_trains_float32_weights(trainer):
    one = trainer(precision="bf16")
    losses = one.train_step()
    assert losses != trainer().train_step()
    assert losses[0] == pytest.approx(trainer().train_step()[0], rel=0.05)
    assert {parameter.dtype for parameter in one.trained.values()} == {torch.float32}


# The tracer looks at all tensors' gradients.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_training_is_the_same_training(trainer, monkeypatch: pytest.MonkeyPatch):
    """Traced, and run as traced: what a compiler makes of it takes minutes, and has other last digits."""
    traced: list[int] = []

    def as_traced(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        traced.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=as_traced))
    one, plain = trainer(compiled=True), trainer()
    assert one.train_step() == plain.train_step()
    assert traced
    for name, tensor in one.trained.items():
        assert torch.equal(tensor, plain.trained[name])


# The moving average


def test_the_average_follows_the_weights_at_its_own_pace(trainer):
    one = trainer(ema_decay=0.75)
    expected = {name: tensor.detach().clone() for name, tensor in one.trained.items()}
    for one.step in range(3):
        one.train_step()
        expected = {name: 0.75 * expected[name] + 0.25 * tensor.detach() for name, tensor in one.trained.items()}
    for name, value in expected.items():
        torch.testing.assert_close(one.average[name], value, atol=1e-6, rtol=1e-5)


def test_without_decay_the_average_is_the_last_step_and_takes_no_memory(trainer):
    one = trainer(ema_decay=0.0)
    one.train_step()
    assert all(torch.equal(one.average[name], tensor) for name, tensor in one.trained.items())
    assert all(one.average[name].data_ptr() == tensor.data_ptr() for name, tensor in one.trained.items())


def test_the_average_takes_the_weights_place_for_a_while(trainer):
    one = trainer(ema_decay=0.9)
    one.train_step()
    weights = {name: tensor.detach().clone() for name, tensor in one.trained.items()}
    with contextlib.suppress(KilledError), one.averaged():
        assert all(torch.equal(tensor, one.average[name]) for name, tensor in one.trained.items())
        assert not torch.equal(one.rows["text_encoder"], weights["modifier_rows.text_encoder"])
        raise KilledError
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.trained.items())


def test_averaging_changes_no_step_of_the_training(trainer, tmp_path: Path):
    def look(state: Trainer) -> None:
        with state.averaged():
            pass

    one, other = trainer(ema_decay=0.0, steps=3), trainer(ema_decay=0.9, steps=3)
    for folder, run in (("one", one), ("other", other)):
        (tmp_path / folder).mkdir()
        run.run(tmp_path / folder, 100, look)
    assert all(torch.equal(tensor, other.trained[name]) for name, tensor in one.trained.items())


# Batches


@pytest.mark.parametrize("size", [2, 5])
def test_batches_cover_every_view_and_every_regularization_image_equally(trainer, size: int):
    one = trainer(batch_size=size)
    views, priors = Counter[int](), Counter[int]()
    for step in range(24):
        drawn = one.batch(step)
        assert [len(part) for part in drawn] == [size, size]
        views.update(drawn[0].tolist())
        priors.update(drawn[1].tolist())
    assert set(views) == set(range(12))
    assert set(priors) == set(range(12, 36))
    for counts in (views, priors):
        assert max(counts.values()) - min(counts.values()) <= 1


def test_rounds_are_shuffled_and_depend_on_the_seed(trainer):
    def order(seed: int) -> list[int]:
        one = trainer(seed=seed, batch_size=4)
        picked: list[int] = []
        for number in range(6):
            picked += one.batch(number)[0].tolist()
        return picked

    zero = order(0)
    assert sorted(zero[:12]) == sorted(zero[12:]) == list(range(12))
    assert zero[:12] != zero[12:]
    assert order(0) == zero != order(1)


# Resuming


def test_a_run_that_broke_off_ends_where_an_unbroken_one_does(trainer, unbroken: Vectors, tmp_path: Path):
    def kill(state: Trainer) -> None:
        if state.step == 4:
            raise KilledError

    with pytest.raises(KilledError):
        trainer().run(tmp_path, 3, kill)
    resumed = trainer()
    steps: list[int] = []
    resumed.run(tmp_path, 3, lambda state: steps.append(state.step))
    assert steps == [4, 5, 6]
    assert len(resumed.history) == 6
    assert_bit_equal(snapshot(resumed), unbroken)


PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from customdiff_core import concepts, profiles
from customdiff_core.artifacts import Store
from customdiff_core.config import FinetuneConfig, Runtime
from customdiff_core.finetuning.finetune import make_trainer

store, key, folder, config = sys.argv[1:]
profile, store, config = profiles.get("openmoji"), Store(Path(store)), FinetuneConfig.model_validate_json(config)
trainer = make_trainer(
    (concepts.load("cat"),), (store.get("training_set", key),), profile, config, store, Runtime(device="cpu")
)

def on_step(state):
    if state.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)

trainer.run(Path(folder), 3, on_step)
"""


def test_a_process_that_was_killed_ends_where_an_unbroken_one_does(chain, trainer, unbroken: Vectors, tmp_path: Path):
    arguments = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        PROGRAM,
        str(chain.store.root),
        chain.training_set.key,
        str(tmp_path),
        chain.finetune_config.model_dump_json(),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run(arguments, check=False, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert newest_checkpoint(tmp_path, 6)[0] == 3
    resumed = trainer()
    resumed.run(tmp_path, 3)
    assert_bit_equal(snapshot(resumed), unbroken)


def test_a_finished_run_given_more_steps_equals_the_long_one(trainer, unbroken: Vectors, tmp_path: Path):
    trainer(steps=4).run(tmp_path, 100)
    longer = trainer(steps=6)
    steps: list[int] = []
    longer.run(tmp_path, 100, lambda state: steps.append(state.step))
    assert steps == [5, 6]
    assert_bit_equal(snapshot(longer), unbroken)


def test_a_damaged_checkpoint_costs_time_and_nothing_else(trainer, unbroken: Vectors, tmp_path: Path):
    trainer(steps=4).run(tmp_path, 2)
    (newest,) = tmp_path.glob("step-0000004-*")
    newest.write_bytes(newest.read_bytes()[:-3])
    resumed = trainer()
    steps: list[int] = []
    resumed.run(tmp_path, 100, lambda state: steps.append(state.step))
    assert steps == [3, 4, 5, 6]
    assert_bit_equal(snapshot(resumed), unbroken)


def test_another_seed_is_another_training(trainer, unbroken: Vectors, tmp_path: Path):
    one = trainer(seed=1)
    one.run(tmp_path, 100)
    assert not torch.equal(one.rows["text_encoder"], unbroken["weight.modifier_rows.text_encoder"])


# A loss that is no number


def test_a_poisoned_example_stops_the_training_and_keeps_the_last_good_checkpoint(trainer, tmp_path: Path):
    one = trainer(learning_rate=3e-4)

    def poison(state: Trainer) -> None:
        if state.step == 3:
            for one in state.examples.latents:
                one.mean[:] = float("nan")

    with pytest.raises(TrainingError) as error:
        one.run(tmp_path, 2, poison)
    assert str(error.value) == (
        "training step 4: found loss nan, need a finite one; lower learning_rate (now 0.0003) or use fp32; "
        "the checkpoint of step 2 is kept"
    )
    step, state = newest_checkpoint(tmp_path, 6)
    assert step == 2
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_a_huge_learning_rate_stops_the_training(trainer, tmp_path: Path):
    with pytest.raises(
        TrainingError, match=r"found loss (nan|inf), need a finite one; lower learning_rate \(now 1e\+30\)"
    ):
        trainer(learning_rate=1e30).run(tmp_path, 100)
    assert newest_checkpoint(tmp_path, 6) == (0, {})


def test_a_gradient_that_is_no_number_stops_the_training_too(trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop.torch.nn.utils, "clip_grad_norm_", lambda parameters, limit: torch.tensor(float("inf")))
    with pytest.raises(TrainingError, match="the checkpoint of step 0 is kept"):
        trainer().run(tmp_path, 1)
    assert newest_checkpoint(tmp_path, 6) == (0, {})
