"""The training loop: concept and regularization images in one forward, from cached latents."""

import logging
import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from customdiff_core import latents as latent_space
from customdiff_core import text
from customdiff_core.config import FinetuneConfig
from customdiff_core.devices import autocast, grad_scaler
from customdiff_core.errors import TrainingError
from customdiff_core.finetuning.checkpoints import newest_checkpoint, save_checkpoint
from customdiff_core.finetuning.components import Components
from customdiff_core.finetuning.loss import instance_loss, prior_loss, target_of
from customdiff_core.seeding import torch_generator

logger = logging.getLogger(__name__)

HISTORY = ("loss", "instance_loss", "prior_loss", "gradient_norm")


@dataclass
class Examples:
    """A training set in memory: N views, then M regularization images.

    `mean` and `logvar` (N + M, 4, h, w), `mask` (N + M, 1, h, w), `prompts` of the views, and `prior_features`
    (M, L, D): the regularization captions, encoded once, since nothing that is trained changes them.
    """

    mean: torch.Tensor
    logvar: torch.Tensor
    mask: torch.Tensor
    prompts: list[str]
    prior_features: torch.Tensor
    latent_scale: float


@dataclass
class Trainer:
    """One fine-tuning: the network, what is trained of it, and the optimizer's state.

    Every draw is named by (seed, step), so that a step needs no state but the weights and the optimizer's.
    """

    components: Components
    examples: Examples
    rows: torch.nn.Parameter
    weights: dict[str, torch.nn.Parameter]
    config: FinetuneConfig
    step: int = 0
    history: list[list[float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.config
        groups = [
            {"params": list(self.weights.values()), "lr": config.learning_rate},
            {"params": [self.rows], "lr": config.modifier_learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        self.scaler = grad_scaler(self.components.device, config.precision)
        self.average = {name: tensor.detach().clone() for name, tensor in self.trained.items()}

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Everything with a gradient, by name."""
        return {**self.weights, "modifier_rows": self.rows}

    def run(
        self, folder: Path, checkpoint_every: int, on_step: Callable[["Trainer"], None] = lambda trainer: None
    ) -> None:
        """Train up to `config.steps`, from the newest checkpoint in `folder` if there is one.

        Raises:
            TrainingError: when the loss is no longer a number; the last good checkpoint stays.
        """
        self.resume(folder)
        while self.step < self.config.steps:
            started = time.monotonic()
            losses = self.train_step()
            if not all(math.isfinite(value) for value in losses):
                raise TrainingError(
                    f"training step {self.step + 1}: found loss {losses[0]}, need a finite one; lower learning_rate "
                    f"(now {self.config.learning_rate:g}) or use fp32; the checkpoint of step {self.saved_step} is kept"
                )
            self.step += 1
            self.history.append(losses)
            self.seconds.append(time.monotonic() - started)
            on_step(self)  # before the checkpoint: what it draws is not skipped by a run that goes on from there
            if self.step % checkpoint_every == 0 or self.step == self.config.steps:
                save_checkpoint(folder, self.step, self.state())
                self.saved_step = self.step

    def train_step(self) -> list[float]:
        """One optimizer step; returns loss, instance loss, prior loss and gradient norm."""
        config, network = self.config, self.components
        views, priors = self.batch()
        generator = torch_generator("train", config.seed, self.step)
        picked = torch.cat([views, priors + len(self.examples.prompts)])
        device = network.device
        clean = latent_space.draw(
            self.examples.mean[picked].to(device),
            self.examples.logvar[picked].to(device),
            self.examples.latent_scale,
            generator,
        )
        noise = torch.randn(clean.shape, generator=generator).to(device)
        times = torch.randint(network.noise_scheduler.config.num_train_timesteps, (len(picked),), generator=generator)
        times = times.to(device)
        noisy = network.noise_scheduler.add_noise(clean, noise, times)
        with autocast(device, config.precision):
            features = text.encode(network, [self.examples.prompts[view] for view in views.tolist()])
            condition = torch.cat([features, self.examples.prior_features[priors].to(features)])
            prediction = network.unet(noisy, times, condition).sample.float()
        target = target_of(network.noise_scheduler, clean, noise, times)
        half = len(views)
        instance = instance_loss(prediction[:half], target[:half], self.examples.mask[views].to(device))
        prior = prior_loss(prediction[half:], target[half:]) if len(priors) else instance.new_zeros(())
        loss = config.instance_weight * instance + config.prior_weight * prior
        return [*(float(value.detach()) for value in (loss, instance, prior)), self.update(loss)]

    def update(self, loss: torch.Tensor) -> float:
        """Back-propagate, clip and step; returns the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.gradient_clip))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for name, tensor in self.trained.items():
            self.average[name].lerp_(tensor.detach(), 1 - self.config.ema_decay)
        # fp16 skips a step whose gradient overflowed and lowers its scale: that is no failure.
        return norm if math.isfinite(norm) or not self.scaler.is_enabled() else 0.0

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Put the moving average in place of the weights, for drawing and saving; training goes on from the weights."""
        kept = {name: tensor.detach().clone() for name, tensor in self.trained.items()}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.trained.items():
            tensor.copy_(values[name])

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the views and the regularization images of this step: each goes round in its own shuffled order."""
        size, config = self.config.batch_size, self.config
        views = _cycle("views", config.seed, self.step * size, size, len(self.examples.prompts))
        total = len(self.examples.prior_features)
        priors = _cycle("priors", config.seed, self.step * size, size, total) if total and config.prior_weight else []
        return torch.tensor(views), torch.tensor(priors, dtype=torch.long)

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next step depends on, and the history so far."""
        state: dict[str, torch.Tensor] = {f"weight.{name}": tensor for name, tensor in self.trained.items()}
        for name, tensor in self.trained.items():
            for slot, value in self.optimizer.state[tensor].items():
                state[f"optimizer.{slot}.{name}"] = torch.as_tensor(value)
        state |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        state["history"] = torch.tensor(self.history, dtype=torch.float64)
        state["seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        state["scale"] = torch.tensor(self.scaler.get_scale())
        return state

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
                self.average[name].copy_(state[f"average.{name}"])
                slots = [
                    key.split(".")[1] for key in state if key.startswith("optimizer.") and key.endswith(f".{name}")
                ]
                self.optimizer.state[tensor] = {
                    slot: _slot(state[f"optimizer.{slot}.{name}"], slot, tensor) for slot in slots
                }
        self.history, self.seconds = state["history"].tolist(), state["seconds"].tolist()
        if self.scaler.is_enabled():
            self.scaler.update(float(state["scale"]))


def _slot(value: torch.Tensor, slot: str, tensor: torch.Tensor) -> torch.Tensor:
    """An optimizer's tensor where AdamW wants it: moments beside the weight, the step count on the CPU."""
    return value.clone() if slot == "step" else value.to(tensor.device)


def _cycle(name: str, seed: int, start: int, count: int, total: int) -> list[int]:
    """Items start .. start + count of an endless round through `total`, reshuffled every time round."""
    picked: list[int] = []
    for position in range(start, start + count):
        order = torch.randperm(total, generator=torch_generator(name, seed, position // total))
        picked.append(int(order[position % total]))
    return picked
