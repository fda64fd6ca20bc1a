"""The pretraining loop: AdamW, warm-up and cosine, a moving average of the weights, checkpoints to go on from."""

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from customdiff_core.config import Device
from customdiff_core.devices import autocast, resolve_device
from customdiff_core.errors import TrainingError
from customdiff_core.finetuning.checkpoints import newest_checkpoint, save_checkpoint
from customdiff_core.pretraining.config import TrainConfig
from customdiff_core.progress import Progress, silent

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 120.0
SMOOTHING = 0.98  # of the loss that is told


@dataclass
class Pretraining:
    """One part in training.

    `loss_of(step)` computes the loss of a step's own batch: the same batch for the same step, so that a resumed run ends at
    the weights of an unbroken one.
    """

    module: nn.Module
    loss_of: Callable[[int], Tensor]
    config: TrainConfig
    device: torch.device
    step: int = 0
    history: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.module.to(self.device).train()
        self.average = copy.deepcopy(self.module).requires_grad_(False)
        parameters = dict(self.module.named_parameters())
        decayed = [one for one in parameters.values() if one.requires_grad and one.ndim > 1]
        plain = [one for one in parameters.values() if one.requires_grad and one.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self.config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=self.config.learning_rate,
            betas=(0.9, 0.99),
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.names = {id(tensor): name for name, tensor in parameters.items()}

    def run(self, folder: Path, progress: Progress = silent) -> nn.Module:
        """Train up to `config.steps`, going on from the newest checkpoint; return the averaged module.

        Raises:
            TrainingError: when the loss or its gradient is no longer a number, before the step; the last checkpoint stays.
        """
        self._resume(folder)
        saved, smooth = time.monotonic(), None
        while self.step < self.config.steps:
            started = time.monotonic()
            loss = self._train_step()
            self.step += 1
            self.history.append([loss, time.monotonic() - started])
            smooth = loss if smooth is None else SMOOTHING * smooth + (1 - SMOOTHING) * loss
            progress(self.step, self.config.steps, f"loss {smooth:.4f}")
            if time.monotonic() - saved > CHECKPOINT_SECONDS or self.step == self.config.steps:
                save_checkpoint(folder, self.step, self._state())
                saved = time.monotonic()
        return self.average.eval()

    def _train_step(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * schedule(self.step, self.config)
        with autocast(self.device, self.config.precision):
            loss = self.loss_of(self.step)
        loss.backward()
        found = float(loss.detach()), float(nn.utils.clip_grad_norm_(self.module.parameters(), 1.0))
        if not all(map(math.isfinite, found)):
            raise TrainingError(
                f"pretraining step {self.step + 1}: found loss {found[0]:g} and a gradient of norm {found[1]:g}, need finite "
                f"ones; lower learning_rate (now {self.config.learning_rate:g}) or use fp32; the newest checkpoint is kept"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._follow()
        return found[0]

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average; faster in the beginning, when the weights are still far from anything."""
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        new, old = self.module.state_dict(), self.average.state_dict()
        floating = [name for name, tensor in new.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
            [old[name] for name in floating], [new[name] for name in floating], 1 - decay
        )

    def _state(self) -> dict[str, Tensor]:
        state = {f"weight.{name}": tensor for name, tensor in self.module.state_dict().items()}
        state |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for tensor, slots in self.optimizer.state.items():
            state |= {f"optimizer.{slot}.{self.names[id(tensor)]}": value for slot, value in slots.items()}
        return state | {"history": torch.tensor(self.history, dtype=torch.float64)}

    def _resume(self, folder: Path) -> None:
        self.step, state = newest_checkpoint(folder, self.config.steps)
        if not state:
            return
        logger.info("going on from the checkpoint of step %d", self.step)
        self.history = state["history"].tolist()
        for prefix, module in (("weight.", self.module), ("average.", self.average)):
            module.load_state_dict(
                {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            )
        for name, tensor in self.module.named_parameters():
            slots = {
                key.split(".")[1]: key for key in state if key.startswith("optimizer.") and key.split(".", 2)[2] == name
            }
            if slots:
                self.optimizer.state[tensor] = {
                    slot: state[key].clone().to(tensor.device) for slot, key in slots.items()
                }


def schedule(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to a twentieth."""
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def pretrain(
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    config: TrainConfig,
    *,
    scratch: Path,
    device: Device = "auto",
    progress: Progress = silent,
) -> tuple[Any, pd.DataFrame]:
    """Train a module; return its average, on the CPU, and the history (step, loss, seconds)."""
    training = Pretraining(module, loss_of, config, resolve_device(device))
    made = training.run(scratch, progress).cpu()
    rows = [{"step": step, "loss": loss, "seconds": took} for step, (loss, took) in enumerate(training.history, 1)]
    return made, pd.DataFrame(rows)
