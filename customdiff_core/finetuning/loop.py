"""The training loop: concept and regularization images in one forward, from cached latents."""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

import torch

from customdiff_core import latents as latent_space
from customdiff_core import text
from customdiff_core.config import FinetuneConfig
from customdiff_core.devices import autocast, grad_scaler
from customdiff_core.errors import TrainingError
from customdiff_core.finetuning import methods
from customdiff_core.finetuning.checkpoints import newest_checkpoint, save_checkpoint
from customdiff_core.finetuning.components import Components, Condition
from customdiff_core.finetuning.early_stop import Watch
from customdiff_core.finetuning.loss import instance_loss, prior_loss, target_of, timestep_weights
from customdiff_core.finetuning.optimizers import make_optimizer
from customdiff_core.finetuning.schedule import rate_factor
from customdiff_core.latents import Latents
from customdiff_core.seeding import torch_generator

logger = logging.getLogger(__name__)

Batch = tuple[torch.Tensor, torch.Tensor]  # rows of the views, and of the regularization images beside them
HISTORY = ("loss", "instance_loss", "prior_loss", "gradient_norm")


@dataclass
class Examples:
    """Training sets in memory: N views, then M regularization images.

    `latents` are all of them, in one shape or several; `prompts` those of the views, and `prior` (M, L, D) the
    regularization captions, encoded once, since nothing that is trained changes them; None without such images.
    `views` and `priors` are the rows of each concept, of which each is seen equally often; `withheld` are views that
    training never sees.
    """

    latents: Sequence[Latents]
    prompts: list[str]
    prior: Condition | None
    latent_scale: float
    views: Sequence[Sequence[int]]
    priors: Sequence[Sequence[int]]
    withheld: Sequence[int] = ()

    def by_shape(self, rows: Sequence[int]) -> dict[torch.Size, list[int]]:
        """Rows in groups of equal shape, which alone can be a batch."""
        groups: dict[torch.Size, list[int]] = {}
        for row in rows:
            groups.setdefault(self.shape(row), []).append(row)
        return groups

    def shape(self, row: int) -> torch.Size:
        """Of a row's latents: (C, h, w)."""
        return self.latents[row].mean.shape


@dataclass
class Trainer:
    """One fine-tuning: the network, what is trained of it, and the optimizer's state.

    `rows` are the new tokens' (n, D), by text encoder; `weights` the UNet's, by name. Every draw is named by (seed, batch),
    so that a step needs no state but the weights and the optimizer's.
    """

    components: Components
    examples: Examples
    rows: dict[str, torch.nn.Parameter]
    weights: dict[str, torch.nn.Parameter]
    config: FinetuneConfig
    step: int = 0
    history: list[list[float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        config, device = self.config, self.components.device
        self.rates = methods.get(config.method).rates(config, regularized=any(map(len, self.examples.priors)))
        groups = zip((list(self.weights.values()), list(self.rows.values())), self.rates, strict=True)
        self.optimizer = make_optimizer(groups, config, device)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = grad_scaler(device, config.precision)
        self.average = {name: tensor.detach() for name, tensor in self.trained.items()}
        if config.ema_decay:  # else the average is the weights, and takes no memory of its own
            self.average = {name: tensor.clone() for name, tensor in self.average.items()}
        # Of its own: pictures drawn while it trains are of other sizes, and would be compiled for.
        predict = self.components.predict
        self.predict = torch.compile(predict, dynamic=False) if config.compiled else predict
        wanted = config.prior_weight > 0
        self.coming = batches(self.examples, config.batch_size, config.seed, priors=wanted)
        self.batches: list[Batch] = []
        self.watch = Watch(config.early_stop)

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Everything with a gradient, by name."""
        return {**self.weights, **{f"modifier_rows.{encoder}": rows for encoder, rows in self.rows.items()}}

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or nothing more is learnt."""
        return self.step >= self.config.steps or self.watch.is_over

    def run(
        self, folder: Path, checkpoint_every: int, on_step: Callable[["Trainer"], None] = lambda trainer: None
    ) -> None:
        """Train up to `config.steps`, from the newest checkpoint in `folder` if there is one.

        Raises:
            TrainingError: when the loss is no longer a number; the last good checkpoint stays.
        """
        self.resume(folder)
        while not self.finished:
            started = time.monotonic()
            losses = self.train_step()
            if not all(math.isfinite(value) for value in losses):
                raise TrainingError(
                    f"training step {self.step + 1}: found loss {losses[0]}, need a finite one; lower "
                    f"{'learning_rate' if self.weights else 'modifier_learning_rate'} (now {self.base_rates[0]:g}) or use fp32; "
                    f"the checkpoint of step {self.saved_step} is kept"
                )
            self.step += 1
            self.history.append(losses)
            self.watch.look(self.step, self.withheld_loss, self.average)
            self.seconds.append(time.monotonic() - started)
            on_step(self)  # before the checkpoint: what it draws is not skipped by a run that goes on from there
            if self.step % checkpoint_every == 0 or self.finished:
                save_checkpoint(folder, self.step, self.state())
                self.saved_step = self.step

    def train_step(self) -> list[float]:
        """One optimizer step; returns loss, instance loss, prior loss (means over its batches) and gradient norm."""
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * rate_factor(self.step, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        batches = self.config.gradient_accumulation
        sums = [0.0, 0.0, 0.0]
        for number in range(self.step * batches, (self.step + 1) * batches):
            losses = self.losses(*self.batch(number), torch_generator("train", self.config.seed, number))
            self.scaler.scale(losses[0] / batches).backward()
            sums = [total + float(value.detach()) for total, value in zip(sums, losses, strict=True)]
        return [*(total / batches for total in sums), self.update()]

    def losses(
        self, views: torch.Tensor, priors: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Total, instance and prior loss of one batch, given by its rows of the examples."""
        config, network, examples = self.config, self.components, self.examples
        picked, device = torch.cat([views, priors]), network.device
        shown = [examples.latents[row] for row in picked.tolist()]
        mean, logvar = (torch.stack([getattr(one, name) for one in shown]).to(device) for name in ("mean", "logvar"))
        clean = latent_space.draw(mean, logvar, examples.latent_scale, generator)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        times = torch.randint(network.noise_scheduler.config.num_train_timesteps, (len(picked),), generator=generator)
        times = times.to(device)
        if config.noise_offset:
            noise = noise + config.noise_offset * torch.randn(*clean.shape[:2], 1, 1, generator=generator).to(device)
        noisy = network.noise_scheduler.add_noise(clean, noise, times)
        with autocast(device, config.precision):
            condition = text.encode(network, [examples.prompts[view] for view in views.tolist()])
            if len(priors) and examples.prior is not None:
                prior_condition = examples.prior.take(priors - len(examples.prompts)).like(condition)
                condition = Condition.cat([condition, prior_condition])
            prediction = self.predict(noisy, times, condition).float()
        target = target_of(network.noise_scheduler, clean, noise, times)
        weights = timestep_weights(network.noise_scheduler, times, config.min_snr_gamma)
        half, mask = len(views), torch.stack([one.mask for one in shown[: len(views)]]).to(device)
        instance = instance_loss(prediction[:half], target[:half], mask, weights[:half])
        no_prior = instance.new_zeros(())
        prior = prior_loss(prediction[half:], target[half:], weights[half:]) if len(priors) else no_prior
        return config.instance_weight * instance + config.prior_weight * prior, instance, prior

    def update(self) -> float:
        """Clip and step; returns the gradient's norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.gradient_clip))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for name, tensor in self.trained.items():
            self.average[name].lerp_(tensor.detach(), 1 - self.config.ema_decay)
        # fp16 skips a step whose gradient overflowed and lowers its scale: that is no failure.
        return norm if math.isfinite(norm) or not self.scaler.is_enabled() else 0.0

    @torch.no_grad()
    def withheld_loss(self) -> float:
        """The averaged weights' loss on the withheld views, on the same noise every time."""
        nobody = torch.tensor([], dtype=torch.long)
        with self._instead(self.average):
            parts = [
                (len(rows), float(self.losses(rows, nobody, torch_generator("withheld", number))[1]))
                for number in range(4)
                for group in self.examples.by_shape(self.examples.withheld).values()
                for rows in torch.tensor(group).split(self.config.batch_size)
            ]
        return sum(rows * loss for rows, loss in parts) / sum(rows for rows, _ in parts)

    def averaged(self) -> AbstractContextManager[None]:
        """Put the result in place of the weights, for drawing and saving; training goes on from the weights.

        The result is the moving average or, at the end of a training that was watched, the best average.
        """
        return self._instead(self.watch.best if self.finished and self.watch.best else self.average)

    @contextmanager
    def _instead(self, values: dict[str, torch.Tensor]) -> Generator[None]:
        kept = {name: tensor.detach().clone() for name, tensor in self.trained.items()}
        self._put(values)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.trained.items():
            tensor.copy_(values[name])

    def batch(self, number: int) -> Batch:
        """Return the views and the regularization images of batch `number`: of one shape, the concepts take turns in each."""
        while len(self.batches) <= number:
            self.batches.append(next(self.coming))
        return self.batches[number]

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next step depends on, and the history so far."""
        state: dict[str, torch.Tensor] = {f"weight.{name}": tensor for name, tensor in self.trained.items()}
        for name, tensor in self.trained.items():
            for slot, value in self.optimizer.state[tensor].items():
                state[f"optimizer.{slot}.{name}"] = torch.as_tensor(value)
        if self.config.ema_decay:
            state |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        state["history"] = torch.tensor(self.history, dtype=torch.float64)
        state["seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        state |= {f"scaler.{name}": torch.tensor(value) for name, value in self.scaler.state_dict().items()}
        return state | self.watch.state()

    def resume(self, folder: Path) -> None:
        """Take up the newest checkpoint, if there is one."""
        self.step, state = newest_checkpoint(folder, self.config.steps)
        self.saved_step = self.step
        if not state:
            return
        logger.info("going on from the checkpoint of step %d", self.step)
        with torch.no_grad():
            for name, tensor in self.trained.items():
                tensor.copy_(state[f"weight.{name}"])
                if self.config.ema_decay:
                    self.average[name].copy_(state[f"average.{name}"])
                slots = [
                    key.split(".")[1] for key in state if key.startswith("optimizer.") and key.endswith(f".{name}")
                ]
                self.optimizer.state[tensor] = {
                    slot: _slot(state[f"optimizer.{slot}.{name}"], slot, tensor) for slot in slots
                }
        self.history, self.seconds = state["history"].tolist(), state["seconds"].tolist()
        self.watch.resume(state, self.components.device)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict({name: state[f"scaler.{name}"].item() for name in self.scaler.state_dict()})


def _slot(value: torch.Tensor, slot: str, tensor: torch.Tensor) -> torch.Tensor:
    """An optimizer's tensor where AdamW wants it: moments beside the weight, the step count on the CPU."""
    return value.clone() if slot == "step" else value.to(tensor.device)


def batches(examples: Examples, size: int, seed: int, *, priors: bool) -> Generator[Batch]:
    """Batches without end: views of one shape, and as many regularization images of that shape, if there shall be any.

    The views come in turns; each waits until there are enough of its shape for a batch. So every view is seen equally often,
    whatever its shape, and a batch is known from its number: it depends on none but the ones before.
    """
    waiting: dict[torch.Size, list[int]] = {}
    beside: dict[torch.Size, Iterator[int]] = {}
    for view in _turns("views", seed, examples.views):
        shape = examples.shape(view)
        waiting.setdefault(shape, []).append(view)
        if len(waiting[shape]) < size:
            continue
        if shape not in beside:
            alike = [[row for row in group if examples.shape(row) == shape] for group in examples.priors]
            beside[shape] = _turns("priors", seed, alike if priors else ())
        yield torch.tensor(waiting.pop(shape)), torch.tensor([*islice(beside[shape], size)], dtype=torch.long)


def _turns(name: str, seed: int, groups: Sequence[Sequence[int]]) -> Iterator[int]:
    """Rows without end: the groups take turns, each goes round in its own order, reshuffled every round."""
    filled = [group for group in groups if group]
    orders: list[list[int]] = [[] for _ in filled]
    for place in count() if filled else ():
        for turn, group in enumerate(filled):
            if place % len(group) == 0:
                generator = torch_generator(name, turn, seed, place // len(group))
                orders[turn] = torch.randperm(len(group), generator=generator).tolist()
            yield group[orders[turn][place % len(group)]]
