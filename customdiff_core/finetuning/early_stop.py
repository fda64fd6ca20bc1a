"""Early stop: look at views withheld from training, keep the best average, and say when to stop.

What it has seen is part of the checkpoint, so that a resumed run stops where an unbroken one does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from customdiff_core.config import EarlyStop


@dataclass
class Watch:
    """The losses on withheld views so far, and the weights that were best; does nothing without a config."""

    config: EarlyStop | None
    losses: list[float] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether the last looks were all no better than the best before them."""
        if self.config is None or len(self.losses) <= self.config.patience:
            return False
        return min(self.losses[-self.config.patience :]) >= min(self.losses[: -self.config.patience])

    def look(self, step: int, loss: Callable[[], float], average: Mapping[str, torch.Tensor]) -> None:
        """Take the loss after `step` steps, when it is due, and keep the weights if it is the lowest so far."""
        if self.config is None or step % self.config.every:
            return
        found = loss()
        if not self.losses or found < min(self.losses):
            self.best = {name: tensor.detach().clone() for name, tensor in average.items()}
        self.losses.append(found)

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds of it."""
        if self.config is None:
            return {}
        losses = torch.tensor(self.losses, dtype=torch.float64)
        return {"withheld": losses, **{f"best.{name}": tensor for name, tensor in self.best.items()}}

    def resume(self, state: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Take up a checkpoint's."""
        if "withheld" in state:
            self.losses = state["withheld"].tolist()
            self.best = {name[5:]: tensor.to(device) for name, tensor in state.items() if name.startswith("best.")}
