"""One layer of a merge: its new weight from what all layers share, and how well each concept is kept in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customdiff_core import tables
from customdiff_core.delta import Factors
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


def merged_layer(name: str, base: Tensor, problem: Problem) -> Tensor:
    """The thin left factor (D_out, n) of a layer's change; the right one is the solution's `p`."""
    parts = zip(problem.targets, problem.kept, strict=True)
    e = torch.cat([wanted_change(one, name, base)[mask] for one, mask in parts])
    return merged_change(e, problem.c_target, problem.solution)[0]


def saved_layer(left: Tensor, base: Tensor, problem: Problem, *, factored: bool) -> tuple[Tensor | Factors, Tensor]:
    """What is saved of a layer, in float32, and the weight that it stands for, in float64."""
    if factored:
        thin = left.float(), problem.solution.p.float()
        return thin, base.double() + thin[0].double() @ thin[1].double()
    whole = (base.double() + left @ problem.solution.p).float()
    return whole, whole.double()


def wanted_change(target: Targets, name: str, base: Tensor) -> Tensor:
    """s (W - W0) c of a concept's rows: (n, D_out); zero where only its token was trained."""
    if name not in target.delta.names:
        return target.features.new_zeros(len(target.features), len(base))
    return target.strength * target.delta.change(name, base, target.features)


def layer_report(
    name: str, base: Tensor, left: Tensor, saved: Tensor, problem: Problem, conditions: Mapping[str, float]
) -> list[tables.Row]:
    """A row a concept: relative errors of its constraints before and after the cast, and of all its rows."""
    whole = base.double() + left @ problem.solution.p
    residual = problem.solution.residual(left, problem.captions)
    rows: list[tables.Row] = []
    for target, kept in zip(problem.targets, problem.kept, strict=True):
        features = target.features
        wanted = features @ base.double().T + wanted_change(target, name, base)
        rows.append(
            {
                "layer": name,
                "concept": target.concept.name,
                "strength": target.strength,
                "constraints": int(kept.sum()),
                "constraint_error": _relative(features[kept] @ whole.T, wanted[kept]),
                "constraint_error_cast": _relative(features[kept] @ saved.T, wanted[kept]),
                "error_all_rows": _relative(features @ whole.T, wanted),
                "regularization_residual": residual,
                "regularization_rms": residual / (problem.captions.rows * len(base)) ** 0.5,
                "weight_change": _relative(whole, base.double()),
                **conditions,
            }
        )
    return rows


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
