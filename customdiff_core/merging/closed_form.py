"""The merge as linear algebra (arXiv:2212.04488, section 3.2): pure functions of float64 tensors.

    min_W ||(W - W0) c_regᵀ||_F   s.t.   W cᵀ = vᵀ

With c_reg = Q R and a = c R⁻¹, the whitened target features, and aᵀ = Q_a R_a, the solution is

    W = W0 + eᵀ p      e = v - c W0ᵀ  (n, D_out)      p = R_a⁻¹ Q_aᵀ R⁻ᵀ  (n, D_in)

`p` knows nothing of the layer: it is solved for once, and a layer costs one thin product. The paper's form of it,
d = c (c_regᵀ c_reg)⁻¹ and W = W0 + eᵀ (d cᵀ)⁻¹ d, squares the condition number of c_reg, and then that of c once more. R and R_a
give the same W and keep the digits: R_a always by QR, R by the Cholesky factorization of the Gram matrix c_regᵀ c_reg, which is
three times as fast, where c_reg's condition number lets it, and by QR where not.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from customdiff_core.errors import MergeError

GRAM = 1e5  # condition number up to which R comes from the Gram matrix: W keeps the seven digits of float32 then


@dataclass(frozen=True)
class Factorization:
    """c_reg = Q R of one base model: the upper triangular `r` (D_in, D_in), of how many rows it is, and its condition number."""

    r: Tensor
    rows: int
    condition: float

    def ridged(self, ridge: float) -> "Factorization":
        """The factorization of c_reg with rows that ask W to stay at W0 in every direction.

        They add ridge s² ||W - W0||² to the objective, where s² is the mean square of c_reg's singular values: directions
        that the captions hardly reach are then no longer free for the concepts to move in.
        """
        if not ridge:
            return self
        width = len(self.r)
        extra = torch.eye(width, dtype=self.r.dtype) * (ridge / width) ** 0.5 * self.r.norm()
        r = torch.linalg.qr(torch.cat([self.r, extra]), mode="r").R
        return Factorization(r, self.rows, condition_number(r))


@dataclass(frozen=True)
class Solution:
    """What all layers share: `p` (n, D_in), and `r_a` (n, n) with a aᵀ = r_aᵀ r_a."""

    p: Tensor
    r_a: Tensor

    def residual(self, left: Tensor, captions: Factorization) -> float:
        """||(W - W0) c_regᵀ||_F of a layer with W - W0 = left p, left (D_out, n), without c_reg."""
        return float((left @ (self.p @ captions.r.T)).norm())

    @property
    def condition(self) -> float:
        """How much of an error in a constraint can reach the weights: the condition number of the whitened targets."""
        return condition_number(self.r_a)


def condition_number(matrix: Tensor) -> float:
    """Ratio of the largest to the smallest singular value."""
    values = torch.linalg.svdvals(matrix)
    return float(values[0] / values[-1])


def factorize(c_reg: Tensor) -> Factorization:
    """Factorize the regularization features (R, D_in), float64.

    Raises:
        MergeError: if they do not span D_in, and the model's answer would be free in some direction.
    """
    by_gram = _cholesky(c_reg)
    if by_gram is not None:
        condition = condition_number(by_gram)
        if condition <= GRAM:
            return Factorization(by_gram, len(c_reg), condition)
    rows, width = c_reg.shape
    r = torch.linalg.qr(c_reg, mode="r").R
    values = torch.linalg.svdvals(r)
    limit = values[0] * max(rows, width) * torch.finfo(r.dtype).eps if len(values) else 0
    rank = int((values > limit).sum())
    if rank < width:
        raise MergeError(
            f"regularization captions: found rank {rank} from {rows} token features, need {width}; "
            "raise merge.captions or take an index of more varied captions"
        )
    return Factorization(r, rows, float(values[0] / values[-1]))


def _cholesky(c_reg: Tensor) -> Tensor | None:
    """R of c_regᵀ c_reg = Rᵀ R, or None where rounding leaves the product no positive definite matrix."""
    blas: Any = scipy.linalg.blas
    lapack: Any = scipy.linalg.lapack
    r, failed = lapack.dpotrf(blas.dsyrk(1.0, c_reg.numpy().T), overwrite_a=True)
    return None if failed else torch.from_numpy(r)


def independent_rows(c_target: Tensor, factorization: Factorization, least: float) -> tuple[list[int], list[int]]:
    """Split target features (n, D_in) into rows that are independent of each other, and rows that the first explain.

    Measured among whitened features of unit length: a row stays while a share of at least `least` of it is new. The
    choice is by pivoted QR, which takes what is newest first: it does not depend on the rows' order but for exact ties.
    """
    if not len(c_target):
        return [], []
    white = torch.linalg.solve_triangular(factorization.r, c_target, upper=True, left=False)
    unit = (white / white.norm(dim=1, keepdim=True)).numpy()
    factored: Any = scipy.linalg.qr(unit.T, mode="r", pivoting=True)
    r, order = factored
    news = np.abs(np.diagonal(r))
    kept = [int(row) for row, new in zip(order, news, strict=False) if new >= least]
    return sorted(kept), sorted({int(row) for row in order} - set(kept))


def solve(c_target: Tensor, factorization: Factorization) -> Solution:
    """Solve for what all layers share, given independent target features (n, D_in)."""
    a = torch.linalg.solve_triangular(factorization.r, c_target, upper=True, left=False)
    q_a, r_a = torch.linalg.qr(a.T)
    unwhitened = torch.linalg.solve_triangular(factorization.r.T, q_a.T, upper=False, left=False)
    return Solution(torch.linalg.solve_triangular(r_a, unwhitened, upper=True), r_a)


def merged_change(e: Tensor, c_target: Tensor, solution: Solution) -> tuple[Tensor, Tensor]:
    """W - W0 of one layer as two thin factors, (D_out, n) and (n, D_in), so that (W - W0) cᵀ = eᵀ.

    One step of refinement takes out what rounding left of the constraints.
    """
    left = e.T
    left = left + (left - left @ (solution.p @ c_target.T))
    return left, solution.p


def constrained_merge(w0: Tensor, c_reg: Tensor, c_target: Tensor, v_target: Tensor) -> Tensor:
    """Merge concepts into one K or V projection, in closed form.

    Args:
        w0: (D_out, D_in) pretrained weight.
        c_reg: (R, D_in) regularization text features, rank D_in.
        c_target: (n, D_in) concept text features, independent rows.
        v_target: (n, D_out) each row through its own fine-tuned layer.

    Returns:
        (D_out, D_in) weight in float64; the caller casts.

    Raises:
        MergeError: if c_reg does not span D_in, or the target rows depend on each other.
    """
    w0, c_reg, c_target, v_target = (tensor.double() for tensor in (w0, c_reg, c_target, v_target))
    factorization = factorize(c_reg)
    dependent = independent_rows(c_target, factorization, 1e-10)[1]
    if dependent:
        raise MergeError(
            f"target features: found {len(dependent)} of {len(c_target)} rows that the others explain, need independent "
            "ones; take them out first"
        )
    left, right = merged_change(v_target - c_target @ w0.T, c_target, solve(c_target, factorization))
    return w0 + left @ right
