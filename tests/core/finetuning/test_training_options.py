"""The settings that people expect of a trainer: each changes what it says, and nothing else."""

import contextlib
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from customdiff_core import stages
from customdiff_core.artifacts import Artifact
from customdiff_core.config import EarlyStop, FinetuneConfig, Runtime
from customdiff_core.errors import ConfigError, TrainingError
from customdiff_core.finetuning.early_stop import Watch
from customdiff_core.finetuning.finetune import make_trainer
from customdiff_core.finetuning.loop import Trainer
from customdiff_core.finetuning.optimizers import make_optimizer
from customdiff_core.finetuning.schedule import rate_factor
from customdiff_core.seeding import seed_of, torch_generator


class KilledError(Exception):
    """Stands for a machine that goes away."""


@pytest.fixture
def trainer(chain):
    def make(runtime: Runtime = Runtime(device="cpu"), **update) -> Trainer:
        config = chain.finetune_config.model_copy(update=update)
        return make_trainer((chain.concept,), (chain.training_set,), chain.profile, config, chain.store, runtime)

    return make


def gradients(one: Trainer) -> dict[str, torch.Tensor]:
    one.train_step()
    return {name: tensor.grad.clone() for name, tensor in one.trained.items() if tensor.grad is not None}


def test_accumulated_batches_have_the_mean_of_their_gradients(trainer):
    unclipped = {"gradient_clip": 1e9}
    both = gradients(trainer(gradient_accumulation=2, **unclipped))
    one = trainer(**unclipped)
    parts: list[dict[str, torch.Tensor]] = []
    for number in range(2):
        one.optimizer.zero_grad()
        one.losses(*one.batch(number), torch_generator("train", one.config.seed, number))[0].backward()
        parts.append({name: tensor.grad.clone() for name, tensor in one.trained.items()})
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, (parts[0][name] + parts[1][name]) / 2, atol=1e-6, rtol=1e-4)


def test_recomputed_activations_give_the_same_gradients(trainer):
    plain = gradients(trainer())
    recomputed = trainer(Runtime(device="cpu", gradient_checkpointing=True))
    assert recomputed.components.unet.is_gradient_checkpointing
    found = gradients(recomputed)
    assert all(torch.equal(found[name], gradient) for name, gradient in plain.items())


def test_warm_up_and_cosine_are_functions_of_the_step():
    config = FinetuneConfig(steps=10, warmup_steps=4, schedule="cosine")
    assert [rate_factor(step, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate_factor(4, config) == 1.0
    assert rate_factor(7, config) == pytest.approx(0.5)
    assert rate_factor(10, config) == pytest.approx(0.0)
    assert {rate_factor(step, FinetuneConfig(steps=10)) for step in range(10)} == {1.0}


def test_the_schedule_reaches_the_optimizer(trainer):
    one = trainer(warmup_steps=10, learning_rate=1e-3, weight_decay=0.0)
    name, weight = next(iter(one.weights.items()))
    before = weight.detach().clone()
    one.train_step()
    moved = (one.weights[name].detach() - before).abs().median().item()
    assert moved == pytest.approx(1e-4, rel=1e-2)  # Adam's first step moves every number by its rate: a tenth of it


def test_a_run_takes_its_batches_in_order_on_their_own_noise_at_the_rates_of_its_steps(
    trainer, tmp_path: Path, monkeypatch
):
    one = trainer(steps=5, warmup_steps=2, schedule="cosine", gradient_accumulation=2)
    asked: list[int] = []
    noise: list[int] = []
    rates: list[list[float]] = []
    batch, losses, update = one.batch, one.losses, one.update

    def drawn(views: torch.Tensor, priors: torch.Tensor, generator: torch.Generator):
        noise.append(generator.initial_seed())
        return losses(views, priors, generator)

    def updated() -> float:
        rates.append([group["lr"] for group in one.optimizer.param_groups])
        return update()

    monkeypatch.setattr(one, "batch", lambda number: asked.append(number) or batch(number))
    monkeypatch.setattr(one, "losses", drawn)
    monkeypatch.setattr(one, "update", updated)
    one.run(tmp_path, 2)
    assert asked == list(range(10))
    assert noise == [seed_of("train", 3, number) for number in range(10)]
    assert [rate for step in rates for rate in step] == pytest.approx(
        [rate * factor for factor in (0.5, 1.0, 1.0, 0.75, 0.25) for rate in (5e-4, 5e-3)]
    )


def test_only_a_constant_rate_can_be_given_more_steps(cat, openmoji):
    training = Artifact(kind="training_set", key="t", sha256="x", rows=1)

    def base_key(steps: int, schedule: str) -> str:
        config = openmoji.finetune.model_copy(update={"steps": steps, "schedule": schedule})
        return stages.finetune((cat,), (training,), openmoji, config).base_key

    assert base_key(10, "constant") == base_key(20, "constant")
    assert base_key(10, "cosine") != base_key(20, "cosine")


def test_offset_noise_is_another_target_for_the_same_draws(trainer):
    plain, offset = trainer().train_step(), trainer(noise_offset=0.5).train_step()
    assert offset[1] != plain[1]
    assert trainer(noise_offset=1e-7).train_step()[1] == pytest.approx(plain[1], rel=1e-4)


def test_min_snr_weighs_the_losses(trainer):
    plain, weighed = trainer().train_step(), trainer(min_snr_gamma=1e-3).train_step()
    assert 0 < weighed[1] < plain[1]
    assert 0 < weighed[2] < plain[2]


def test_8_bit_state_needs_cuda():
    groups = [([torch.nn.Parameter(torch.ones(2))], 1e-3)]
    with pytest.raises(ConfigError) as error:
        make_optimizer(groups, FinetuneConfig(steps=1, optimizer="adamw-8bit"), torch.device("cpu"))
    assert str(error.value) == (
        "optimizer: found adamw-8bit on cpu, need CUDA for it; set train.optimizer=adamw (customdiff train: --set "
        "optimizer=adamw)"
    )
    with pytest.raises(ValidationError, match="adamw-8bit"):
        FinetuneConfig.model_validate({"steps": 1, "optimizer": "adam8"})


# Early stop


def test_a_watch_is_over_after_so_many_looks_without_a_better_one():
    watch, losses = Watch(EarlyStop(every=2, patience=2)), iter([5.0, 3.0, 4.0, 3.5])
    over: list[bool] = []
    for step in range(1, 9):
        watch.look(step, lambda: next(losses), {"a": torch.tensor(float(step))})
        over.append(watch.is_over)
    assert over == [False] * 7 + [True]
    assert watch.best == {"a": torch.tensor(4.0)}


def test_withheld_views_are_never_trained_on_and_training_stops_at_the_best(trainer, tmp_path: Path, monkeypatch):
    one = trainer(steps=40, early_stop=EarlyStop(views=4, every=2, patience=2))
    assert list(one.examples.withheld) == [8, 9, 10, 11]
    seen = {row for number in range(24) for row in one.batch(number)[0].tolist()}
    assert seen == set(range(8))
    losses = iter([3.0, 2.0, 2.5, 2.2, 0.0])
    monkeypatch.setattr(one, "withheld_loss", lambda: next(losses))
    at: dict[int, torch.Tensor] = {}
    one.run(tmp_path, 3, lambda state: at.update({state.step: state.average["modifier_rows.text_encoder"].clone()}))
    assert one.step == 8
    with one.averaged():
        assert torch.equal(one.rows["text_encoder"], at[4])


def test_the_withheld_loss_is_that_of_the_average_on_noise_of_its_own(trainer):
    one = trainer(early_stop=EarlyStop(views=4, every=1), ema_decay=0.999)
    assert one.withheld_loss() == one.withheld_loss() > 0
    for one.step in range(8):
        one.train_step()
    nobody = torch.tensor([], dtype=torch.long)

    def measured() -> float:
        losses = [
            float(one.losses(torch.tensor(rows), nobody, torch_generator("withheld", number))[1])
            for number in range(4)
            for rows in ([8, 9], [10, 11])
        ]
        return sum(losses) / len(losses)

    found, kept = one.withheld_loss(), {name: tensor.detach().clone() for name, tensor in one.trained.items()}
    with torch.no_grad():
        of_the_weights = measured()
        for name, tensor in one.trained.items():
            assert torch.equal(tensor, kept[name])  # training goes on from where it was
            tensor.copy_(one.average[name])
        of_the_average = measured()
    assert abs(of_the_weights - of_the_average) > 1e-3 * of_the_average
    assert found == pytest.approx(of_the_average, rel=1e-6)


def test_a_run_that_broke_off_stops_where_an_unbroken_one_does(trainer, tmp_path: Path):
    stop = {"steps": 12, "early_stop": EarlyStop(views=4, every=1, patience=2), "learning_rate": 0.05}
    whole = trainer(**stop)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole.run(tmp_path / "a", 2)
    assert whole.step < 12

    def kill(state: Trainer) -> None:
        if state.step == 3:
            raise KilledError

    with contextlib.suppress(KilledError):
        trainer(**stop).run(tmp_path / "b", 2, kill)
    resumed = trainer(**stop)
    resumed.run(tmp_path / "b", 2)
    assert resumed.step == whole.step
    assert resumed.watch.losses == whole.watch.losses
    assert all(torch.equal(resumed.watch.best[name], tensor) for name, tensor in whole.watch.best.items())


def test_too_few_views_to_withhold(trainer):
    with pytest.raises(TrainingError) as error:
        trainer(early_stop=EarlyStop(views=12))
    assert str(error.value) == (
        "early stop: found 12 views of a concept, need more than the 12 that are withheld; "
        "raise augment.views or lower early_stop.views"
    )
