"""The merge at real shapes, measured: against the obvious implementation, for 2 to 10 concepts, and Stable Diffusion XL's size.

python -m deployments.bench_merge

Features are synthetic (as many, as wide and as unequally spread as CLIP's), weights random. The obvious implementation solves
each layer on its own, with a least-squares solve for every target row; it is timed on LAYERS of the layers and multiplied.
Times are processor seconds of one thread, which other programs on the machine do not lengthen and no waiting thread adds to.
"""

import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from customdiff_core.config import MergeConfig
from customdiff_core.delta import Delta
from customdiff_core.lineage import Lineage, Taught
from customdiff_core.merging.closed_form import factorize
from customdiff_core.merging.merge import merge_targets
from customdiff_core.merging.text_features import Targets

LAYERS = 1  # that the obvious implementation is timed on
ROUNDS = 3
TOKENS = 12_000  # of 1000 captions
WORDS = 6  # target rows that a concept has of its own
SD14 = (768, [320] * 10 + [640] * 10 + [1280] * 12)
SDXL = (2048, [640] * 20 + [1280] * 120)

Weights = dict[str, torch.Tensor]


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    console = Console()
    console.print(against_the_obvious())
    console.print(many_concepts())
    console.print(stable_diffusion_xl())


def against_the_obvious() -> Table:
    """Two concepts at Stable Diffusion 1.4's 32 matrices."""
    width, heights = SD14
    c_reg, base, targets = problem(width, heights, concepts=2)
    drivers = {"gelsy": "torch's own least squares (gelsy)", "gelsd": "least squares by SVD, as NumPy's (gelsd)"}
    obvious = {
        name: seconds(lambda driver=driver: the_obvious(c_reg, base, targets, driver)) * len(base) / LAYERS
        for driver, name in drivers.items()
    }
    cold = seconds(lambda: merge_targets(targets, base, factorize(c_reg), MergeConfig()))
    ready = factorize(c_reg)
    cached = seconds(lambda: merge_targets(targets, base, ready, MergeConfig()))
    title = f"2 concepts, Stable Diffusion 1.4's {len(base)} matrices; of the obvious, {LAYERS} is timed"
    table = Table(
        "obvious", "seconds", f"here, cold: {cold:.2f} s", f"factorization cached: {cached:.2f} s", title=title
    )
    for name, spent in obvious.items():
        table.add_row(name, f"{spent:.1f}", f"{spent / cold:.0f}x", f"{spent / cached:.0f}x")
    return table


def many_concepts() -> Table:
    """2 to 10 concepts: time with the factorization cached, and the worst constraint error."""
    width, heights = SD14
    table = Table(
        "concepts", "seconds", "worst error, float64", "after the cast", title="Stable Diffusion 1.4's shapes"
    )
    for count in (2, 4, 6, 8, 10):
        c_reg, base, targets = problem(width, heights, concepts=count)
        ready = factorize(c_reg)
        report = merge_targets(targets, base, ready, MergeConfig())[1]
        spent = seconds(
            lambda targets=targets, base=base, ready=ready: merge_targets(targets, base, ready, MergeConfig())
        )
        worst = (max(float(row[name]) for row in report) for name in ("constraint_error", "constraint_error_cast"))
        table.add_row(str(count), f"{spent:.2f}", *(f"{one:.1e}" for one in worst))
    return table


def stable_diffusion_xl() -> Table:
    """XL's 140 matrices: time and the process's peak memory, which holds base, both deltas and the result."""
    width, heights = SDXL
    c_reg, base, targets = problem(width, heights, concepts=2)
    spent = seconds(lambda: merge_targets(targets, base, factorize(c_reg), MergeConfig()))
    held = sum(tensor.numel() * tensor.element_size() for tensor in base.values()) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    table = Table(
        "matrices", "seconds, cold", "peak memory", "base model's keys and values", title="Stable Diffusion XL's shapes"
    )
    table.add_row(str(len(base)), f"{spent:.1f}", f"{peak:.1f} GB", f"{held:.2f} GB")
    return table


def problem(width: int, heights: list[int], concepts: int) -> tuple[torch.Tensor, Weights, list[Targets]]:
    """Captions' features, base weights, and concepts with weights of their own."""
    rng = np.random.default_rng(0)
    spread = np.logspace(0, -4, width)  # a condition number of about 1e4, as measured on text features
    turned = np.linalg.qr(rng.normal(size=(width, width)))[0] * spread[:, None]

    def features(rows: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=(rows, width)) @ turned)

    generator = torch.Generator().manual_seed(0)

    def weights(size: float) -> Weights:
        return {
            f"{number}.attn2.to_k.weight": size * torch.randn(height, width, generator=generator)
            for number, height in enumerate(heights)
        }

    base = weights(width**-0.5)
    found: list[Targets] = []
    for number in range(concepts):
        moved = weights(0.05 * width**-0.5)
        delta = Delta({name: base[name] + moved[name] for name in base}, {}, Lineage())
        taught = Taught(name=str(number), modifier_token=f"<{number}>")
        found.append(Targets(taught, delta, 1.0, features(WORDS), ((str(number), "word"),) * WORDS))
    return features(TOKENS), base, found


def the_obvious(c_reg: torch.Tensor, base: Weights, targets: list[Targets], driver: str) -> list[torch.Tensor]:
    """The paper's formula as it reads, layer by layer: d row by row from a least-squares solve, in float64."""
    merged: list[torch.Tensor] = []
    for name in list(base)[:LAYERS]:
        w0 = base[name].double()
        c = torch.cat([one.features for one in targets])
        v = torch.cat([one.features @ one.delta.weights[name].double().T for one in targets])
        gram = c_reg.T @ c_reg
        d = torch.stack([torch.linalg.lstsq(gram, row[:, None], driver=driver).solution[:, 0] for row in c])
        merged.append(w0 + (v.T - w0 @ c.T) @ torch.linalg.solve(d @ c.T, d))
    return merged


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of the fastest of some runs: the first one also pays for fresh memory."""
    took: list[float] = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        took.append(time.process_time() - started)
    return min(took)


if __name__ == "__main__":
    main()
