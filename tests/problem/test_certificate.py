"""The certificate: never above the optimum, closing at it, at every iterate of every solver."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from convexprobe.problem import certificate
from convexprobe.problem.certificate import DENSE, estimated_gap, lower_bound
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers import SOLVERS, NewtonCG
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Record
from tests.oracle import Data, dense_hessian, minimum, random_data, reference, tasks

RIGOUR = 1e-9
"""Nats by which a bound may exceed F* found by another float64 computation."""

penalties = st.floats(-6.0, 1.0).map(lambda e: float(10.0**e))


def subset(problem: Problem, w: np.ndarray, rows: np.ndarray) -> Sample:
    return Sample.of(problem, w, rows, np.ones(len(rows)))


@pytest.mark.parametrize("l2", [1e-4, 1e-1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_oracle_agrees_with_scipy_and_scikit_learn(l2: float, weighted: bool) -> None:
    data = random_data(50, 3, 4, weighted=weighted, skew=0.5)
    w, value = minimum(data, l2)
    found = minimize(
        lambda w: reference(data, w, l2)[:2],
        np.zeros_like(w),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 10000, "ftol": 1e-16, "gtol": 1e-9},
    )
    assert abs(found.fun - value) < 1e-9
    total = len(data.y) if data.weights is None else data.weights.sum()
    model = LogisticRegression(
        C=1 / (l2 * total), solver="newton-cholesky", tol=1e-10, max_iter=500
    ).fit(data.x, data.y, data.weights)
    theirs = np.concatenate([model.coef_.ravel(), model.intercept_])
    assert abs(reference(data, theirs, l2)[0] - value) < 1e-9


@settings(max_examples=400)
@given(data=tasks, l2=penalties, scale=st.floats(-2.0, 2.0), part=st.floats(0.05, 1.0))
@example(data=random_data(5, 1, 5), l2=1e-6, scale=2.0, part=1.0)
def test_no_bound_exceeds_the_optimum(data: Data, l2: float, scale: float, part: float) -> None:
    _, optimum = minimum(data, l2)
    problem = data.problem(l2)
    rng = np.random.default_rng(len(data.y))
    w = 10.0**scale * rng.standard_normal((1, problem.p))
    at = problem.evaluate(w)
    limit = optimum + RIGOUR * max(1.0, optimum)
    assert 0.0 <= lower_bound(problem, at)[0] <= limit
    drawn = Sample.draw(problem, at, max(1, int(part * problem.n)), rng)
    if len(drawn.index):
        assert 0.0 <= lower_bound(problem, at, drawn)[0] <= limit
    rows = rng.permutation(problem.n)[: max(1, int(part * problem.n))]
    assert 0.0 <= lower_bound(problem, at, subset(problem, at.w, rows))[0] <= limit


@settings(max_examples=300)
@given(data=tasks, l2=penalties, away=st.floats(-9.0, 0.0), part=st.floats(0.05, 1.0))
def test_no_bound_exceeds_the_optimum_near_it(
    data: Data, l2: float, away: float, part: float
) -> None:
    # Near the optimum the bounds are tight, so a wrong sign or factor shows here first.
    w, optimum = minimum(data, l2)
    problem = data.problem(l2)
    rng = np.random.default_rng(len(data.y))
    at = problem.evaluate((w + 10.0**away * rng.standard_normal(problem.p))[None])
    rows = rng.permutation(problem.n)[: max(1, int(part * problem.n))]
    for sample in (None, subset(problem, at.w, rows), subset(problem, at.w, np.arange(problem.n))):
        assert lower_bound(problem, at, sample)[0] <= optimum + RIGOUR


@settings(max_examples=60)
@given(data=tasks, l2=st.floats(-4.0, 1.0).map(lambda e: float(10.0**e)))
def test_the_gap_closes_at_the_optimum(data: Data, l2: float) -> None:
    w, optimum = minimum(data, l2)
    problem = data.problem(l2)
    at = problem.evaluate(w[None])
    # The oracle's gradient is about 1e-9 where it stops: its square over 2 l2 is below 1e-10, and
    # what the bias misses by costs first order in the mixture: 1e-9 times a residual over l2.
    for sample in (None, subset(problem, at.w, np.arange(problem.n))):
        assert abs(lower_bound(problem, at, sample)[0] - optimum) <= 1e-6


def centred(data: Data, w: np.ndarray, l2: float) -> np.ndarray:
    """The same weights with the biases that make the mean of P the class frequencies."""
    cut = data.k * data.x.shape[1]
    w = w.copy()
    for _ in range(100):
        _, gradient, p = reference(data, w, l2)
        hessian = dense_hessian(data, p, l2)[cut:, cut:] + 1.0 / data.k
        step = np.linalg.solve(hessian, gradient[cut:])
        w[cut:] -= step / max(1.0, np.abs(step).max())
    assert np.abs(reference(data, w, l2)[1][cut:]).max() < 1e-14
    return w


@pytest.mark.parametrize("l2", [1e-2, 1.0, 10.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_with_the_mean_met_the_gap_is_the_squared_gradient(l2: float, weighted: bool) -> None:
    data = random_data(40, 3, 3, weighted=weighted)
    problem = data.problem(l2)
    noise = 0.02 * np.random.default_rng(1).standard_normal(problem.p)
    w = centred(data, minimum(data, l2)[0] + noise, l2)
    at = problem.evaluate(w[None])
    exact = np.sum(at.gradient**2) / (2 * l2)
    bound = at.value[0] - exact
    assert bound > 0 and exact > 1e-4  # else the bound is cut at 0, or there is nothing to see
    assert lower_bound(problem, at)[0] == pytest.approx(bound, abs=1e-11)
    everything = subset(problem, at.w, np.arange(problem.n))
    assert lower_bound(problem, at, everything)[0] == pytest.approx(bound, abs=1e-11)
    assert estimated_gap(problem, at.gradient, at.value)[0] == pytest.approx(exact, rel=1e-9)


def dual_of_the_mixture(data: Data, w: np.ndarray, l2: float) -> tuple[float, float]:
    """D(Q) and `t` from their definitions, with `Q = (1-t) P + t c` written out row by row."""
    n = len(data.y)
    s = (np.ones(n) if data.weights is None else data.weights).copy()
    s /= s.sum()
    one_hot = np.eye(data.k)[data.y]
    p = reference(data, w, l2)[2]
    mean, f = s @ p, s @ one_hot
    t = max(0.0, ((mean - f) / mean).max())
    c = (f - (1 - t) * mean) / t
    q = (1 - t) * p + t * c
    np.testing.assert_allclose(s @ q, f, atol=1e-13)  # feasible: what makes D(Q) a bound
    assert q.min() > -1e-13
    # What `mean H(Q_i)` is at least, as entropy is concave: the bound uses the mixture of the two.
    safe_p, safe_c = np.where(p > 0, p, 1.0), np.where(c > 1e-15, c, 1.0)
    entropy = (1 - t) * (s @ -np.sum(p * np.log(safe_p), axis=1))
    entropy -= t * np.sum(c * np.log(safe_c))
    g = (s[:, None] * (q - one_hot)).T @ data.x
    return float(entropy - np.sum(g**2) / (2 * l2)), float(t)


def test_the_free_bound_is_the_dual_value_of_its_mixture() -> None:
    compared = 0
    for seed in range(60):
        data = random_data(40, 3, 3, seed, weighted=bool(seed % 2))
        l2 = 10.0 ** (seed % 3)
        problem = data.problem(l2)
        w, _ = minimum(data, l2)
        w = w + 0.3 * np.random.default_rng(seed).standard_normal(problem.p) / l2
        w[-3:] += 0.5 * np.random.default_rng(seed).standard_normal(3)
        expected, t = dual_of_the_mixture(data, w, l2)
        bound = lower_bound(problem, problem.evaluate(w[None]))[0]
        assert bound == pytest.approx(max(expected, 0.0), rel=1e-9)
        compared += expected > 0.01 and t > 0.1
    assert compared >= 10  # both terms of the mixture matter in these


def test_the_repair_is_tighter_where_the_mean_is_missed() -> None:
    data = random_data(60, 4, 3)
    w, optimum = minimum(data, 1e-4)
    problem = data.problem(1e-4)
    cut = data.k * 4
    w[cut:] += 1e-3 * np.array([1.0, -1.0, 0.0])
    at = problem.evaluate(w[None])
    free = optimum - lower_bound(problem, at)[0]
    sample = subset(problem, at.w, np.arange(problem.n))
    repaired = optimum - lower_bound(problem, at, sample)[0]
    assert 0 <= repaired < 0.1 * free


@pytest.mark.parametrize("weighted", [False, True])
def test_many_classes_are_repaired_by_iterations_as_by_factors(
    weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    k = DENSE + 10
    data = random_data(4 * k, 6, k, weighted=weighted)
    problem = data.problem(1e-3)
    solution = solve(problem, NewtonCG(), tol=1e-9, max_passes=2000)
    optimum, rng = float(solution.objective[0] - solution.gap[0]), np.random.default_rng(0)
    at = problem.evaluate(solution.w + 1e-3 * rng.standard_normal((1, problem.p)))
    for rows in (np.arange(problem.n), np.arange(0, problem.n, 2)):
        sample = subset(problem, at.w, rows)
        found = lower_bound(problem, at, sample)[0]
        assert found <= optimum + 1e-6
        with monkeypatch.context() as patch:
            patch.setattr(certificate, "DENSE", k)
            assert found == pytest.approx(lower_bound(problem, at, sample)[0], abs=1e-5)
    free, whole = lower_bound(problem, at), lower_bound(problem, at, subset(
        problem, at.w, np.arange(problem.n)))  # fmt: skip
    assert optimum - whole[0] < 0.1 * (optimum - free[0])


def test_a_class_that_no_tilt_can_move_does_not_spoil_the_repair() -> None:
    """A class with certain rows alone: what is left of its excess leaves it in every row alike."""
    data = random_data(60, 4, 3)
    x = np.concatenate([data.x, 40.0 + np.zeros((5, 4))])
    data = Data(x, np.concatenate([data.y, np.full(5, 3)]), 4)
    w, optimum = minimum(data, 1e-3)
    problem = data.problem(1e-3)
    w[-4:] += 1e-2 * np.array([1.0, -1.0, 0.0, 2.0])
    at = problem.evaluate(w[None])
    repaired = lower_bound(problem, at, subset(problem, at.w, np.arange(problem.n)))[0]
    assert optimum - 1e-4 < repaired <= optimum + RIGOUR


def test_tasks_of_a_family_have_the_bounds_of_separate_problems() -> None:
    data = random_data(50, 4, 3, weighted=True)
    l2 = [1e-3, 1e-1, 1.0]
    problem = data.problem(l2)
    w = np.stack([minimum(data, p)[0] for p in l2]) + 0.01
    at = problem.evaluate(w)
    rows = np.arange(0, 50, 2)
    free = lower_bound(problem, at)
    repaired = lower_bound(problem, at, subset(problem, at.w, rows))
    for t, penalty in enumerate(l2):
        one = data.problem(penalty)
        alone = one.evaluate(w[t : t + 1])
        assert free[t] == pytest.approx(lower_bound(one, alone)[0], rel=1e-9)
        sample = subset(one, alone.w, rows)
        assert repaired[t] == pytest.approx(lower_bound(one, alone, sample)[0], rel=1e-9)


@pytest.mark.parametrize("k", [3, 5])
def test_absent_classes_do_not_spoil_the_bound(k: int) -> None:
    data = random_data(40, 3, 3)
    wide = Data(data.x, data.y, k)
    w, optimum = minimum(data, 1e-2)
    problem = wide.problem(1e-2)
    full = np.zeros((1, problem.p))
    full[0, :9], full[0, 3 * k : 3 * k + 3] = w[:9], w[9:]
    at = problem.evaluate(full + 1e-4)
    for sample in (None, subset(problem, at.w, np.arange(40))):
        assert optimum - 1e-2 < lower_bound(problem, at, sample)[0] <= optimum + RIGOUR


def test_without_a_penalty_the_bound_is_zero() -> None:
    problem = random_data(40, 3, 3).problem(0.0)
    at = problem.evaluate(np.ones((1, problem.p)))
    assert lower_bound(problem, at)[0] == 0.0
    assert lower_bound(problem, at, subset(problem, at.w, np.arange(40)))[0] == 0.0


def test_a_point_that_is_not_finite_has_no_bound() -> None:
    problem = random_data(40, 3, 3).problem(0.1)
    with np.errstate(all="ignore"):
        at = problem.evaluate(np.full((1, problem.p), np.nan))
        assert lower_bound(problem, at)[0] == 0.0


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=50)
@given(data=tasks, l2=penalties)
def test_every_iterate_of_every_solver_has_a_true_gap(solver: str, data: Data, l2: float) -> None:
    _, optimum = minimum(data, l2)
    records: list[Record] = []
    solution = solve(
        data.problem(l2), SOLVERS[solver](), tol=1e-6, max_passes=40, callbacks=[records.append]
    )
    assert records
    for record in records:
        assert record.gap[0] >= record.objective[0] - optimum - RIGOUR * max(1.0, optimum)
    gaps = [r.gap[0] for r in records]
    assert all(b <= a + 1e-12 for a, b in pairwise(gaps))
    assert solution.gap[0] == gaps[-1] and np.isfinite(gaps).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("l2", [1e-4, 1e-1])
def test_narrow_activations_have_gaps_that_cover_the_rounding(dtype: type, l2: float) -> None:
    for seed in range(10):
        data = random_data(60, 4, 3, seed)
        stored = Data(data.x.astype(dtype).astype(np.float64), data.y, 3)
        _, optimum = minimum(stored, l2)
        solution = solve(data.problem(l2, dtype=dtype), NewtonCG(), tol=1e-9, max_passes=200)
        exact = reference(stored, solution.w[0], l2)[0]
        assert solution.gap[0] >= exact - optimum
        assert exact - optimum < 1e-5


@pytest.mark.parametrize(("dtype", "mean"), [(np.float32, 3e5), (np.float64, 1e11)])
def test_the_constant_s_bound_is_doubted_as_much_as_its_moments_are_rounded(
    dtype: type, mean: float
) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        stored = (rng.standard_normal((150, 3)) + mean * rng.standard_normal(3)).astype(dtype)
        weights = 10.0 ** rng.uniform(-12, 0, 150) if seed % 2 else None
        y = (rng.random(150) < 0.6).astype(int)
        data = Data(stored.astype(np.float64), y, 2, weights)
        rounded = None if weights is None else weights.astype(dtype).astype(np.float64)
        centred = Data(data.x - data.x.mean(axis=0), y, 2, rounded)
        _, optimum = minimum(centred, 100.0)
        records: list[Record] = []
        solve(
            data.problem(100.0, dtype=dtype), NewtonCG(), max_passes=0, callbacks=[records.append]
        )
        assert records[0].objective[0] - records[0].gap[0] <= optimum + 1e-14
