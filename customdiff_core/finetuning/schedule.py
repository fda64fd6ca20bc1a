"""The learning rate over the steps: a pure function, so that a resumed run needs no state for it."""

import math

from customdiff_core.config import FinetuneConfig


def rate_factor(step: int, config: FinetuneConfig) -> float:
    """What the learning rates are multiplied by in step 0, 1, ...: a linear warm-up, then constant or half a cosine."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
