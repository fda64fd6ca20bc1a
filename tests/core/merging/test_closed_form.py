"""The closed form against independent solvers of the same constrained problem, and its properties on any shape."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis.extra.numpy import arrays

from customdiff_core.errors import MergeError
from customdiff_core.merging import closed_form
from customdiff_core.merging.closed_form import (
    Factorization,
    constrained_merge,
    factorize,
    independent_rows,
    merged_change,
    solve,
)

Problem = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def problem(
    seed: int = 0, width: int = 12, outputs: int = 7, rows: int = 40, targets: int = 4, spread: float = 1
) -> Problem:
    """W0, c_reg, c_target and v_target; `spread` is the ratio of the largest to the smallest spread of features."""
    rng = np.random.default_rng(seed)
    scales = np.logspace(0, -np.log10(spread), width)
    turned = np.linalg.qr(rng.normal(size=(width, width)))[0] * scales[:, None]
    made = (
        rng.normal(size=(outputs, width)),
        rng.normal(size=(rows, width)) @ turned,
        rng.normal(size=(targets, width)) @ turned,
        rng.normal(size=(targets, outputs)),
    )
    w0, c_reg, c_target, v_target = (torch.from_numpy(one) for one in made)
    return w0, c_reg, c_target, v_target


def kkt(w0: torch.Tensor, c_reg: torch.Tensor, c_target: torch.Tensor, v_target: torch.Tensor) -> torch.Tensor:
    """Solve the stationarity and the constraints as one linear system: [2G cᵀ; c 0] [Wᵀ; λ] = [2G W0ᵀ; v]."""
    width, targets = c_reg.shape[1], len(c_target)
    gram = c_reg.T @ c_reg
    system = torch.zeros(width + targets, width + targets, dtype=torch.float64)
    system[:width, :width], system[:width, width:], system[width:, :width] = 2 * gram, c_target.T, c_target
    right = torch.cat([2 * gram @ w0.T, v_target])
    return torch.linalg.solve(system, right)[:width].T


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [1, 100])
def test_it_is_the_solution_of_the_kkt_system(seed: int, spread: float):
    given_problem = problem(seed, spread=spread)
    found, expected = constrained_merge(*given_problem), kkt(*given_problem)
    assert (found - expected).norm() / expected.norm() < 1e-8


def test_it_is_where_gradient_descent_ends():
    """Gradient steps on the objective, projected onto the constraints: no algebra of ours in it."""
    w0, c_reg, c_target, v_target = problem(3)
    pseudo = torch.linalg.pinv(c_target)

    def project(w: torch.Tensor) -> torch.Tensor:
        return w + (v_target.T - w @ c_target.T) @ pseudo.T

    gram = c_reg.T @ c_reg
    rate = 1 / torch.linalg.eigvalsh(gram)[-1]
    w = project(w0)
    for _ in range(4000):
        w = project(w - rate * (w - w0) @ gram)
    torch.testing.assert_close(constrained_merge(w0, c_reg, c_target, v_target), w, atol=1e-8, rtol=1e-8)


def test_it_is_the_papers_formula():
    w0, c_reg, c_target, v_target = problem(1)
    d = c_target @ torch.linalg.inv(c_reg.T @ c_reg)
    expected = w0 + (v_target.T - w0 @ c_target.T) @ torch.linalg.inv(d @ c_target.T) @ d
    torch.testing.assert_close(constrained_merge(w0, c_reg, c_target, v_target), expected, atol=1e-9, rtol=1e-9)


def test_it_keeps_the_digits_where_the_papers_formula_loses_them():
    """Condition 1e7, whose square is beyond float64's reach."""
    w0, c_reg, c_target, v_target = problem(2, spread=1e7)
    found = constrained_merge(w0, c_reg, c_target, v_target)
    assert (found @ c_target.T - v_target.T).norm() / v_target.norm() < 1e-8
    d = c_target @ torch.linalg.inv(c_reg.T @ c_reg)
    paper = w0 + (v_target.T - w0 @ c_target.T) @ torch.linalg.inv(d @ c_target.T) @ d

    def objective(w: torch.Tensor) -> float:
        return float(((w - w0) @ c_reg.T).norm())

    worse = (paper @ c_target.T - v_target.T).norm() / v_target.norm() > 1e-8 or objective(paper) > objective(found) * (
        1 + 1e-8
    )
    assert worse


@pytest.mark.parametrize("spread", [1, 1e3, 1e4])
def test_by_the_gram_matrix_or_by_qr_the_weights_are_the_same(spread: float, monkeypatch: pytest.MonkeyPatch):
    given_problem = problem(4, width=64, rows=400, spread=spread)
    by_gram = constrained_merge(*given_problem)
    monkeypatch.setattr(closed_form, "GRAM", 0.0)
    assert (by_gram - constrained_merge(*given_problem)).norm() <= 1e-8 * by_gram.norm()


@pytest.mark.parametrize(("spread", "qr"), [(1e4, 0), (1e6, 1), (1e10, 1)])
def test_beyond_the_gram_matrixs_digits_it_is_the_qr(spread: float, qr: int, monkeypatch: pytest.MonkeyPatch):
    taken: list[int] = []
    whole = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda *given, **how: taken.append(1) or whole(*given, **how))
    factorize(problem(spread=spread)[1])
    assert len(taken) == qr


def test_the_residual_is_the_objective_without_the_captions():
    w0, c_reg, c_target, v_target = problem()
    factorization = factorize(c_reg)
    solution = solve(c_target, factorization)
    left, right = merged_change(v_target - c_target @ w0.T, c_target, solution)
    assert right is solution.p
    assert solution.residual(left, factorization) == pytest.approx(float((left @ right @ c_reg.T).norm()))
    assert factorization.condition == pytest.approx(float(torch.linalg.cond(c_reg)))
    white = c_target @ torch.linalg.inv(factorization.r)
    assert solution.condition == pytest.approx(float(torch.linalg.cond(white)))


def test_a_ridge_holds_the_weights_and_keeps_the_constraints():
    w0, c_reg, c_target, v_target = problem(spread=1e3)
    e, factorization = v_target - c_target @ w0.T, factorize(c_reg)
    changes: list[float] = []
    for ridge in (0.0, 1e-4, 1e-1):
        left, right = merged_change(e, c_target, solve(c_target, factorization.ridged(ridge)))
        torch.testing.assert_close((left @ right) @ c_target.T, e.T, atol=1e-8, rtol=1e-8)
        changes.append(float((left @ right).norm()))
    assert changes[0] > changes[1] > changes[2]
    assert factorization.ridged(0.0) is factorization
    gram = c_reg.T @ c_reg
    held = factorization.ridged(0.1).r
    expected = gram + 0.1 * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
    torch.testing.assert_close(held.T @ held, expected, atol=1e-9, rtol=1e-9)


# Properties


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    width = draw(st.integers(2, 12))
    sizes = {
        "outputs": draw(st.integers(1, 6)),
        "rows": draw(st.integers(width + 2, 40)),
        "targets": draw(st.integers(1, width - 1)),
    }
    return problem(draw(st.integers(0, 2**20)), width, spread=draw(st.sampled_from([1.0, 30.0])), **sizes)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_any_problem_is_solved_within_its_constraints_and_no_feasible_step_helps(one: Problem):
    w0, c_reg, c_target, v_target = one
    found = constrained_merge(*one)
    assert (found @ c_target.T - v_target.T).norm() <= 1e-7 * max(1.0, float(v_target.norm()))
    # A step that keeps the constraints: any matrix, less its part within the targets' span.
    step = torch.randn(w0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    free = step - step @ torch.linalg.pinv(c_target) @ c_target
    slope = ((found - w0) @ c_reg.T * (free @ c_reg.T)).sum()
    assert abs(slope) <= 1e-7 * float(((found - w0) @ c_reg.T).norm() * (free @ c_reg.T).norm() + 1)


@given(problems(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_rows_does_not_matter(one: Problem, random):
    w0, c_reg, c_target, v_target = one
    order = list(range(len(c_target)))
    random.shuffle(order)
    found, shuffled = constrained_merge(*one), constrained_merge(w0, c_reg, c_target[order], v_target[order])
    assert (found - shuffled).norm() <= 1e-7 * found.norm()


@given(problems())
@settings(max_examples=30, deadline=None)
def test_targets_that_are_met_already_change_nothing(one: Problem):
    w0, c_reg, c_target, _ = one
    found = constrained_merge(w0, c_reg, c_target, c_target @ w0.T)
    assert (found - w0).norm() <= 1e-9 * w0.norm()


@given(st.integers(2, 10), st.data())
@settings(max_examples=60, deadline=None)
def test_copies_and_sums_of_rows_are_found_however_many(width: int, data: st.DataObject):
    rank = data.draw(st.integers(1, width))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    free = rng.normal(size=(rank, width))
    copies = data.draw(st.lists(st.integers(0, rank - 1), max_size=5))
    mixed = data.draw(arrays(np.float64, (data.draw(st.integers(0, 3)), rank), elements=st.integers(-2, 2)))
    mixed = mixed[np.abs(mixed).sum(axis=1) > 0]
    assume(np.linalg.cond(free) < 1e3)
    rows = torch.from_numpy(np.concatenate([free, free[copies] * 2.5, mixed @ free]))
    order = torch.from_numpy(rng.permutation(len(rows)))
    kept, dependent = independent_rows(rows[order], Factorization(torch.eye(width, dtype=torch.float64), 50, 1.0), 1e-8)
    assert len(kept) == rank
    assert sorted(kept + dependent) == list(range(len(rows)))
    assert torch.linalg.matrix_rank(rows[order][kept]) == rank


@given(st.integers(2, 9), st.integers(0, 2**20))
@settings(max_examples=40, deadline=None)
def test_captions_of_too_small_a_rank_are_refused(width: int, seed: int):
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, width))
    c_reg = torch.from_numpy(rng.normal(size=(30, rank)) @ rng.normal(size=(rank, width)))
    with pytest.raises(MergeError) as error:
        factorize(c_reg)
    assert str(error.value) == (
        f"regularization captions: found rank {rank} from 30 token features, need {width}; "
        "raise merge.captions or take an index of more varied captions"
    )


def test_fewer_captions_than_dimensions_are_refused():
    with pytest.raises(MergeError, match="found rank 3 from 3 token features, need 12"):
        factorize(torch.randn(3, 12, dtype=torch.float64))


def test_dependent_targets_are_refused_by_the_bare_solver():
    w0, c_reg, c_target, v_target = problem()
    twice = torch.cat([c_target, c_target[:1] * 2])
    with pytest.raises(MergeError) as error:
        constrained_merge(w0, c_reg, twice, torch.cat([v_target, v_target[:1]]))
    assert str(error.value) == (
        "target features: found 1 of 5 rows that the others explain, need independent ones; take them out first"
    )


def test_no_rows_are_no_problem_for_the_choice():
    assert independent_rows(torch.zeros(0, 12), factorize(problem()[1]), 1e-3) == ([], [])
