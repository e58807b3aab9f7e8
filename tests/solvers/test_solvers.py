"""Every solver on every kind of problem and library, against a float64 oracle."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.objective import Problem
from convexprobe.solvers import LBFGS, SOLVERS, Adam, NewtonCG, Solver
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Record, Solution, Status
from tests.oracle import Data, minimum, random_data, reference

CERTIFYING = ("newton-cg", "lbfgs")


def ill_conditioned(n: int = 120, d: int = 6) -> Data:
    data = random_data(n, d, 3)
    mix = np.linalg.qr(np.random.default_rng(1).standard_normal((d, d)))[0]
    return Data(data.x @ np.diag(np.logspace(0, -3, d)) @ mix, data.y, 3)


def with_columns(change: Callable[[np.ndarray], np.ndarray]) -> Data:
    data = random_data(100, 5, 3)
    return Data(change(data.x), data.y, 3)


def one_row_classes() -> Data:
    data = random_data(80, 4, 3)
    y = data.y.copy()
    y[:4] = [3, 4, 5, 6]
    y[4:7] = [0, 1, 2]
    return Data(data.x, y, 7)


PROBLEMS: dict[str, tuple[Callable[[], Data], float]] = {
    "well conditioned": (lambda: random_data(120, 5, 3), 1e-2),
    "ill conditioned": (ill_conditioned, 1e-5),
    "weighted and skewed": (lambda: random_data(120, 5, 4, weighted=True, skew=1.0), 1e-3),
    "wide": (lambda: random_data(30, 100, 3), 1e-2),
    "constant feature": (lambda: with_columns(lambda x: np.c_[x, np.full(100, 5.0)]), 1e-3),
    "duplicated features": (lambda: with_columns(lambda x: np.c_[x, x, x[:, :1]]), 1e-3),
    "zero features": (lambda: with_columns(lambda x: np.c_[x, np.zeros((100, 2))]), 1e-3),
    "scaled columns": (lambda: with_columns(lambda x: x * np.logspace(-6, 6, 5)), 1e-3),
    "one-row classes": (one_row_classes, 1e-3),
    "two classes": (lambda: random_data(100, 5, 2), 1e-3),
    "thousand classes": (lambda: random_data(1100, 3, 1000), 1e-3),
}


@cache
def optimum(name: str) -> tuple[Data, float, float]:
    """Data, penalty and F* of a problem; for many parameters F* comes from L-BFGS in SciPy.

    SciPy's value is above F*, so a gap is compared with a little less than the truth.
    """
    make, l2 = PROBLEMS[name]
    data = make()
    size = data.k * (data.x.shape[1] + 1)
    if size <= 400:
        return data, l2, minimum(data, l2)[1]
    found = minimize(
        lambda w: reference(data, w, l2)[:2],
        np.zeros(size),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 400, "maxfun": 500, "ftol": 1e-15, "gtol": 1e-9},
    )
    return data, l2, float(found.fun)


def check_claims(solution: Solution, data: Data, l2: float, best: float) -> None:
    """What a solution says of itself is true of its point."""
    w = to_numpy(solution.w)[0]
    value = reference(data, w, l2)[0]
    assert value == pytest.approx(solution.objective[0], rel=1e-9)
    assert solution.gap[0] >= value - best - 1e-9 * max(1.0, best)
    assert np.isfinite(w).all() and np.isfinite(solution.gap).all()


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("solver", CERTIFYING)
def test_certifies(solver: str, name: str, library: ModuleType) -> None:
    data, l2, best = optimum(name)
    problem = data.problem(l2, library, np.float64)
    solution = solve(problem, SOLVERS[solver](), tol=1e-3, max_passes=1000)
    check_claims(solution, data, l2, best)
    assert solution.status == (Status.CERTIFIED,), (solution.gap, solution.passes)
    assert solution.gap[0] <= 1e-3 * data.label_entropy
    assert solution.objective[0] - best <= solution.gap[0]


@pytest.mark.parametrize("name", PROBLEMS)
def test_adam_never_claims_too_much(name: str, library: ModuleType) -> None:
    data, l2, best = optimum(name)
    solution = solve(data.problem(l2, library, np.float64), Adam(), tol=1e-3, max_passes=20)
    check_claims(solution, data, l2, best)
    assert solution.objective[0] <= data.label_entropy + 1e-12  # no worse than where it started


def test_adam_gets_there_on_an_easy_problem() -> None:
    data, l2, _ = optimum("well conditioned")
    solution = solve(data.problem(l2), Adam(batch=32), tol=1e-2, max_passes=400)
    assert solution.status == (Status.CERTIFIED,)


@pytest.mark.parametrize("name", [n for n in PROBLEMS if n != "scaled columns"])
@pytest.mark.parametrize("solver", CERTIFYING)
@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
def test_certifies_in_float32(solver: str, name: str, xp: ModuleType) -> None:
    data, l2, _ = optimum(name)
    stored = replace(data, x=data.x.astype(np.float32).astype(np.float64))
    problem = data.problem(l2, xp, np.float32)
    solution = solve(problem, SOLVERS[solver](), tol=1e-3, max_passes=1000)
    assert solution.status == (Status.CERTIFIED,), (solution.gap, solution.passes)
    # The gap has an allowance for rounding; what it bounds is the exact objective.
    value = reference(stored, to_numpy(solution.w)[0], l2)[0]
    assert value == pytest.approx(solution.objective[0], rel=1e-6)
    assert solution.gap[0] >= value - optimum(name)[2] - 1e-6


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("solver", CERTIFYING)
def test_badly_scaled_columns_in_float32_end_with_an_honest_gap(
    solver: str, xp: ModuleType
) -> None:
    data, l2, best = optimum("scaled columns")
    problem = data.problem(l2, xp, np.float32)
    solution = solve(problem, SOLVERS[solver](), tol=1e-3, max_passes=300)
    stored = replace(data, x=data.x.astype(np.float32).astype(np.float64))
    value = reference(stored, to_numpy(solution.w)[0], l2)[0]
    assert solution.gap[0] >= value - best - 1e-6
    assert value <= data.label_entropy + 1e-6


@pytest.mark.parametrize("name", ["well conditioned", "two classes", "weighted and skewed"])
@pytest.mark.parametrize("solver", CERTIFYING)
def test_agrees_with_scikit_learn(solver: str, name: str) -> None:
    data, l2, _ = optimum(name)
    solution = solve(data.problem(l2), SOLVERS[solver](), tol=1e-8)
    assert solution.status == (Status.CERTIFIED,)
    total = len(data.y) if data.weights is None else data.weights.sum()
    # For two classes scikit-learn has one row of weights w, ours are w/2 and -w/2: half the square.
    halves = 2 if data.k == 2 else 1
    model = LogisticRegression(
        C=halves / (l2 * total), solver="newton-cholesky", tol=1e-10, max_iter=500
    ).fit(data.x, data.y, data.weights)
    coef, bias = model.coef_, model.intercept_
    if data.k == 2:
        coef, bias = np.concatenate([-coef, coef]) / 2, np.concatenate([-bias, bias]) / 2
    theirs = reference(data, np.concatenate([coef.ravel(), bias]), l2)[0]
    assert abs(solution.objective[0] - theirs) < 1e-6
    loss = reference(data, np.concatenate([coef.ravel(), bias]), 0.0)[0]
    assert abs(solution.loss[0] - loss) < 1e-6


@pytest.mark.parametrize("solver", SOLVERS)
def test_separable_data_without_a_penalty_is_recognised(solver: str, library: ModuleType) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    data = Data(rng.standard_normal((60, 4)) + 20 * np.eye(3, 4)[y], y, 3)
    solution = solve(data.problem(0.0, library), SOLVERS[solver](), tol=1e-3, max_passes=200)
    assert solution.status == (Status.SEPARABLE,)
    assert np.isfinite(to_numpy(solution.w)).all()
    assert solution.gap[0] >= solution.objective[0] >= 0.0  # the infimum is 0


@pytest.mark.parametrize("solver", CERTIFYING)
def test_data_without_a_penalty_that_is_not_separable_ends_uncertified(
    solver: str, library: ModuleType
) -> None:
    data = random_data(80, 3, 3, 5)
    _, best = minimum(data, 0.0)
    assert best > 0.1  # not separable
    solution = solve(data.problem(0.0, library), SOLVERS[solver](), tol=1e-3, max_passes=500)
    assert solution.status == (Status.UNCERTIFIED,)
    assert solution.passes[0] < 300
    assert solution.gap[0] >= solution.objective[0] - best
    assert solution.objective[0] - best < 1e-3 * data.label_entropy


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", CERTIFYING)
@pytest.mark.parametrize(("n", "d"), [(30, 100), (60, 200)])
def test_wide_data_without_a_penalty_are_separable(
    solver: str, n: int, d: int, dtype: type
) -> None:
    problem = random_data(n, d, 3).problem(0.0, np, dtype)
    solution = solve(problem, SOLVERS[solver](), tol=1e-3, max_passes=100)
    assert solution.status == (Status.SEPARABLE,)
    assert solution.objective[0] < 0.01


@pytest.mark.parametrize("solver", CERTIFYING)
def test_a_path_equals_separate_solves(solver: str, library: ModuleType) -> None:
    data, path = random_data(100, 5, 3, weighted=True), [1.0, 1e-4, 1e-2, 10.0]
    together = solve(data.problem(path, library), SOLVERS[solver](), tol=1e-6)
    for t, l2 in enumerate(path):
        alone = solve(data.problem(l2, library), SOLVERS[solver](), tol=1e-6)
        best = minimum(data, l2)[1]
        for value, gap in (
            (together.objective[t], together.gap[t]),
            (alone.objective[0], alone.gap[0]),
        ):
            assert -1e-10 <= value - best <= gap <= 1e-6 * data.label_entropy
    assert together.status == (Status.CERTIFIED,) * 4
    assert together.running == ()


def test_adam_solves_a_family_whose_tasks_end_at_different_times(library: ModuleType) -> None:
    data, path = random_data(100, 4, 3), [10.0, 1e-3, 1.0]
    solution = solve(data.problem(path, library), Adam(batch=32), tol=1e-2, max_passes=60)
    assert len(set(solution.passes)) > 1
    for t, l2 in enumerate(path):
        assert solution.gap[t] >= solution.objective[t] - minimum(data, l2)[1]


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def global_state() -> tuple[Any, ...]:
    legacy = np.random.get_state()  # noqa: NPY002
    return random.getstate(), legacy[1].tolist(), legacy[2], torch.get_rng_state().tolist()


@pytest.mark.parametrize("solver", [NewtonCG(rows=40), LBFGS(rows=40), Adam(batch=64)])
def test_the_same_seed_gives_the_same_bits_and_no_global_state_is_touched(
    solver: Solver,
) -> None:
    data = random_data(600, 5, 3)

    def run(solver: Solver, xp: ModuleType) -> np.ndarray:
        return to_numpy(solve(data.problem(1e-3, xp), solver, tol=1e-5, max_passes=30).w)

    for xp in (np, torch):
        seed_everything(1)
        before = global_state()
        first = run(solver, xp)
        assert global_state() == before
        seed_everything(2)
        np.testing.assert_array_equal(run(solver, xp), first)
        other = run(replace(solver, seed=1), xp)  # type: ignore[type-var]  # a protocol
        assert (other != first).any()  # so the seed does decide


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("budget", [0.0, 3.0])
def test_a_spent_budget_is_a_status_with_a_finite_gap(solver: str, budget: float) -> None:
    data, l2, best = optimum("ill conditioned")
    solution = solve(data.problem(l2), SOLVERS[solver](), tol=1e-12, max_passes=budget)
    assert solution.status == (Status.MAX_PASSES,)
    assert np.isfinite(solution.gap[0]) and solution.gap[0] >= solution.objective[0] - best
    assert solution.running == (0,)
    assert solution.passes[0] < budget + 15  # a step may finish
    timed = solve(data.problem(l2), SOLVERS[solver](), tol=1e-12, max_seconds=0.0)
    assert timed.status == (Status.MAX_SECONDS,)


@pytest.mark.parametrize("solver", CERTIFYING)
def test_rounding_that_ends_progress_is_a_status(solver: str) -> None:
    data, l2, _ = optimum("well conditioned")
    problem = data.problem(l2, np, np.float32)
    solution = solve(problem, SOLVERS[solver](), tol=1e-12, max_passes=1000)
    assert solution.status == (Status.ROUNDING,)
    assert solution.gap[0] < 2e-5


def test_records_are_what_happened() -> None:
    data, l2, _ = optimum("ill conditioned")
    records: list[Record] = []
    solution = solve(data.problem([l2, 1.0]), NewtonCG(), callbacks=[records.append])
    assert tuple(records) == solution.history
    assert [r.step for r in records] == list(range(len(records)))
    for before, after in pairwise(records):
        assert after.passes > before.passes and after.seconds >= before.seconds
        assert (after.objective <= before.objective).all() and (
            after.gap <= before.gap + 1e-15
        ).all()
    np.testing.assert_array_equal(records[-1].gap, solution.gap)
    np.testing.assert_array_equal(records[-1].objective, solution.objective)


@dataclass(frozen=True)
class Recorder:
    """A solver that also keeps the points it visits."""

    solver: Solver
    points: list[np.ndarray] = field(default_factory=list)

    def init(self, problem: Problem, w: Any) -> Any:
        return self.solver.init(problem, w)

    def step(self, problem: Problem, w: Any, state: Any) -> tuple[Any, Any]:
        w, state = self.solver.step(problem, w, state)
        self.points.append(to_numpy(w).copy())
        return w, state


@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("solver", [NewtonCG(rows=60), LBFGS(rows=60), Adam(batch=64)])
def test_a_resumed_solve_follows_the_uninterrupted_one(solver: Solver, xp: ModuleType) -> None:
    data = random_data(800, 6, 3)
    whole = Recorder(solver)
    solve(data.problem(1e-4, xp), whole, tol=1e-13, max_passes=24)
    problem, first, second = data.problem(1e-4, xp), Recorder(solver), Recorder(solver)
    cut = solve(problem, first, tol=1e-13, max_passes=8)
    assert cut.status == (Status.MAX_PASSES,)
    solve(problem, second, tol=1e-13, max_passes=24, state=cut.state)
    resumed = first.points + second.points
    assert len(first.points) >= 2 and len(second.points) >= 2
    for a, b in zip(whole.points, resumed, strict=False):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("solver", [NewtonCG(rows=60), LBFGS(rows=60), Adam(batch=64)])
def test_the_running_tasks_of_a_family_resume_within_their_budget(solver: Solver) -> None:
    data = random_data(400, 5, 3)
    problem = data.problem([100.0, 1e-5])
    cut = solve(problem, solver, tol=3e-3, max_passes=5)
    assert cut.status == (Status.CERTIFIED, Status.MAX_PASSES) and cut.running == (1,)
    rest = problem.take_tasks(list(cut.running))
    budget = problem.passes + 10
    again = solve(rest, solver, tol=1e-13, max_passes=budget, max_seconds=5.0, state=cut.state)
    assert again.objective[0] <= cut.objective[1]
    assert again.status == (Status.MAX_PASSES,)  # and not the seconds that guard this test
