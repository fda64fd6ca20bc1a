"""One layer of a merge: its new weight from what all layers share, and how well each concept is kept in it.

A layer of Stable Diffusion has a million numbers and a dozen target rows: what costs time is walking through the weights. They
are turned into float64 a few rows at a time, which stay in the processor's cache, and all else is done with thin matrices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customdiff_core import tables
from customdiff_core.delta import Factors, outputs, rows_of
from customdiff_core.merging.closed_form import Factorization, Solution, merged_change
from customdiff_core.merging.text_features import Targets


@dataclass(frozen=True)
class Problem:
    """What all layers share: the concepts, which of their rows are constraints, and the solution for these rows."""

    targets: Sequence[Targets]
    kept: Sequence[Tensor]
    c_target: Tensor
    solution: Solution
    captions: Factorization


@dataclass(frozen=True)
class Layer:
    """A solved layer: W0, its outputs on each concept's rows, what each wants added to them, and W - W0 = left p.

    All but W0 in float64.
    """

    name: str
    base: Tensor
    plain: Sequence[Tensor]
    wanted: Sequence[Tensor]
    left: Tensor


def solve_layer(name: str, base: Tensor, problem: Problem) -> Layer:
    """Solve a layer with weight base (D_out, D_in)."""
    features = [one.features for one in problem.targets]
    plain = outputs(torch.cat(features), base).split([len(rows) for rows in features])
    wanted = [_wanted(one, name, part) for one, part in zip(problem.targets, plain, strict=True)]
    e = torch.cat([change[mask] for change, mask in zip(wanted, problem.kept, strict=True)])
    return Layer(name, base, plain, wanted, merged_change(e, problem.c_target, problem.solution)[0])


def saved_layer(layer: Layer, problem: Problem, *, factored: bool) -> Tensor | Factors:
    """What is saved of a layer, in float32: its weight, or the two factors of its change."""
    p = problem.solution.p
    if factored:
        return layer.left.float(), p.float()
    whole = torch.empty(layer.base.shape)
    for rows in rows_of(layer.base):
        whole[rows] = torch.addmm(layer.base[rows].double(), layer.left[rows], p)
    return whole


def layer_report(
    layer: Layer, saved: Tensor | Factors, problem: Problem, conditions: Mapping[str, float]
) -> list[tables.Row]:
    """A row a concept: relative errors of its constraints before and after the cast, and of all its rows."""
    p, left = problem.solution.p, layer.left
    residual = problem.solution.residual(left, problem.captions)
    size = torch.linalg.vector_norm(layer.base, dtype=torch.float64)
    moved = float(((left.T @ left) * (p @ p.T)).sum().clamp(min=0).sqrt() / size)  # ||left p|| / ||W0||
    rows: list[tables.Row] = []
    for target, kept, plain, change in zip(problem.targets, problem.kept, layer.plain, layer.wanted, strict=True):
        wanted, found = plain + change, plain + (target.features @ p.T) @ left.T
        cast = _outputs_of_saved(target.features[kept], saved, plain[kept])
        rows.append(
            {
                "layer": layer.name,
                "concept": target.concept.name,
                "strength": target.strength,
                "constraints": int(kept.sum()),
                "constraint_error": _relative(found[kept], wanted[kept]),
                "constraint_error_cast": _relative(cast, wanted[kept]),
                "error_all_rows": _relative(found, wanted),
                "regularization_residual": residual,
                "regularization_rms": residual / (problem.captions.rows * len(left)) ** 0.5,
                "weight_change": moved,
                **conditions,
            }
        )
    return rows


def _outputs_of_saved(features: Tensor, saved: Tensor | Factors, plain: Tensor) -> Tensor:
    if isinstance(saved, Tensor):
        return outputs(features, saved)
    left, right = (factor.double() for factor in saved)
    return plain + features @ right.T @ left.T


def _wanted(target: Targets, name: str, plain: Tensor) -> Tensor:
    """s (W - W0) c of a concept's rows: (n, D_out); zero where only its token was trained."""
    if name not in target.delta.names:
        return torch.zeros_like(plain)
    return target.strength * target.delta.change(name, target.features, plain)


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
