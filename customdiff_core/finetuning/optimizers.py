"""The optimizer: AdamW over what is trained and nothing else."""

from collections.abc import Iterable
from typing import Any

import torch

from customdiff_core.config import FinetuneConfig
from customdiff_core.errors import ConfigError

Groups = Iterable[tuple[list[torch.nn.Parameter], float]]


def make_optimizer(groups: Groups, config: FinetuneConfig, device: torch.device) -> torch.optim.Optimizer:
    """Return AdamW with a learning rate for each group of parameters; empty groups are left out.

    Raises:
        ConfigError: if its state shall be in 8 bits where that cannot be.
    """
    wanted = [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(wanted, weight_decay=config.weight_decay)
    return _eight_bit(device)(wanted, weight_decay=config.weight_decay)


def _eight_bit(device: torch.device) -> Any:
    if device.type != "cuda":
        raise ConfigError(
            f"optimizer: found adamw-8bit on {device.type}, need CUDA for it; set train.optimizer=adamw "
            "(customdiff train: --set optimizer=adamw)"
        )
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "optimizer: found no bitsandbytes, need it for adamw-8bit; install it or set train.optimizer=adamw "
            "(customdiff train: --set optimizer=adamw)"
        ) from error
    return bitsandbytes.optim.AdamW8bit
