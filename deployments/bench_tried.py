"""What was tried to make a training step of the embedded model faster, each beside the step as it is. A few minutes.

python -m deployments.bench_tried

Every variant trains the same keys and values on the same 8 views and 8 regularization images; rounds of all variants alternate,
and a figure is the fastest of them.
"""

import time
from collections.abc import Callable

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from customdiff_core import profiles
from customdiff_core.config import FinetuneConfig
from customdiff_core.finetuning.components import Condition, load_components
from customdiff_core.finetuning.cross_attention import KEYS_AND_VALUES
from customdiff_core.finetuning.loop import Examples, Trainer
from customdiff_core.finetuning.modifier_token import add_modifier_tokens
from customdiff_core.finetuning.trained_parameters import train_parameters
from customdiff_core.latents import Latents

ROUNDS, STEPS, BATCH = 4, 5, 8
VIEWS, PRIORS = 48, 200

Change = Callable[[Trainer], None]


def main() -> None:
    """Measure and print."""
    trainers = {name: trainer(change) for name, change in VARIANTS.items()}
    for one in trainers.values():
        one.train_step()  # compiles, where it is compiled
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(ROUNDS):
        for name, one in trainers.items():
            started = time.perf_counter()
            for one.step in range(STEPS):
                one.train_step()
            times[name].append((time.perf_counter() - started) / STEPS)
    best = {name: min(kept) for name, kept in times.items()}
    table = Table(
        "",
        "ms a step",
        "as fast as now",
        title=f"A step of {BATCH} + {BATCH} pictures, {torch.get_num_threads()} threads",
    )
    for name, took in best.items():
        table.add_row(name, f"{1e3 * took:.0f}", f"{best['as it is'] / took:.2f}x")
    Console().print(table)
    with FlopCounterMode(display=False) as counter:
        trainers["as it is"].train_step()
    Console().print(
        f"{counter.get_total_flops() / 1e9:.1f} GFLOP a step, {counter.get_total_flops() / 1e9 / best['as it is']:.0f} a second"
    )


def trainer(change: Change) -> Trainer:
    """A training of the embedded model on random latents, with one thing changed."""
    components = load_components(profiles.get("openmoji").model)
    encoder, config = components.encoders[0], components.unet.config
    rows = add_modifier_tokens(encoder, ["<v>"], ["ktn"]).rows
    weights = train_parameters(components.unet, KEYS_AND_VALUES, detach_bos=True)
    generator, side = torch.Generator().manual_seed(0), config.sample_size
    mean = torch.randn(VIEWS + PRIORS, config.in_channels, side, side, generator=generator)
    length = encoder.tokenizer.model_max_length
    examples = Examples(
        latents=[Latents(one, torch.full_like(one, -10.0), torch.ones(1, side, side)) for one in mean],
        prompts=["photo of a <v> cat"] * VIEWS,
        prior=Condition(torch.randn(PRIORS, length, config.cross_attention_dim, generator=generator)),
        latent_scale=1.0,
        views=[range(VIEWS)],
        priors=[range(VIEWS, VIEWS + PRIORS)],
    )
    training = FinetuneConfig(steps=1, batch_size=BATCH, learning_rate=1e-5)
    made = Trainer(components, examples, {encoder.name: rows}, weights, training)
    change(made)
    return made


def _as_it_is(one: Trainer) -> None:
    del one


def _fused_attention(one: Trainer) -> None:
    one.components.unet.set_attn_processor(AttnProcessor2_0())


def _plain_attention(one: Trainer) -> None:
    one.components.unet.set_attn_processor(AttnProcessor())


def _compiled(one: Trainer) -> None:
    one.components.unet.compile(dynamic=False)


def _channels_last(one: Trainer) -> None:
    one.components.unet.to(memory_format=torch.channels_last)


def _bf16(one: Trainer) -> None:
    one.config = one.config.model_copy(update={"precision": "bf16"})


def _bf16_plain_attention(one: Trainer) -> None:
    _bf16(one)
    _plain_attention(one)


def _fused_optimizer(one: Trainer) -> None:
    one.optimizer = _optimizer(one, fused=True)


def _single_tensor_optimizer(one: Trainer) -> None:
    one.optimizer = _optimizer(one, foreach=False)


def _optimizer(one: Trainer, *, fused: bool | None = None, foreach: bool | None = None) -> torch.optim.AdamW:
    """AdamW on the same parameters; groups taken over whole would bring the first one's way of computing."""
    groups = [{"params": group["params"], "lr": group["lr"]} for group in one.optimizer.param_groups]
    return torch.optim.AdamW(groups, weight_decay=one.config.weight_decay, fused=fused, foreach=foreach)


VARIANTS: dict[str, Change] = {
    "as it is": _as_it_is,
    "fused attention (SDPA)": _fused_attention,
    "plain attention": _plain_attention,
    "torch.compile": _compiled,
    "channels last": _channels_last,
    "bf16": _bf16,
    "bf16, plain attention": _bf16_plain_attention,
    "fused AdamW": _fused_optimizer,
    "AdamW, a tensor at a time": _single_tensor_optimizer,
}


if __name__ == "__main__":
    main()
