"""Where answers were wrong without a word: starts, null spaces, rounding, time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import convexprobe as cxp
from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.objective import Problem
from convexprobe.problem.pullback import pullback
from convexprobe.solvers import LBFGS, SOLVERS, SolverState, Status, solve
from convexprobe.solvers.path import solve_path
from tests.claims import parameters
from tests.oracle import Data, minimum, random_data, reference

CERTIFYING = ["auto", "newton-cg", "newton-cholesky", "lbfgs"]


@pytest.mark.parametrize("solver", CERTIFYING)
def test_a_constant_is_not_returned_where_the_first_step_would_classify(solver: str) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    x = 1e-4 * (rng.standard_normal((400, 5)) + 1.5 * y[:, None])
    probe = cxp.fit_probes(x, y, solver, l2=1e-3)["activations"]
    assert probe.status is Status.CERTIFIED
    assert probe.train_error < 0.15  # the constant's is a half, and its gap was within tol


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_bias_of_a_class_without_rows_stays(
    solver: str, dtype: type, library: ModuleType
) -> None:
    data = random_data(60, 3, 2)
    a, x = library.asarray, (data.x - data.x.mean(axis=1, keepdims=True)).astype(dtype)
    rows, labels = Rows(a(x)), a(np.stack([np.arange(60) % 4, data.y]))
    problem = Problem(rows, labels, [1e-2, 1e-2], classes=4)
    solution = solve(problem, SOLVERS[solver](), tol=1e-6, max_passes=60)
    bias = to_numpy(problem.split(solution.w)[1])
    assert np.abs(bias[1, 2:]).max() < 1e-3 and np.abs(bias).max() < 20


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", CERTIFYING)
@pytest.mark.parametrize("kind", ["constant column", "one-hot blocks"])
def test_without_a_penalty_dependent_columns_do_not_run_away(
    kind: str, solver: str, dtype: Any
) -> None:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((300, 3))
    if kind == "constant column":
        x = np.concatenate([noise, np.full((300, 2), 3.0)], axis=1)
    else:
        x = np.concatenate([np.eye(4)[rng.integers(4, size=300)] for _ in range(2)], axis=1)
    y = (noise[:, 0] + rng.gumbel(size=300) > 0.5).astype(int)
    data = Data(x.astype(dtype).astype(float), y, 2)
    probe = cxp.fit_probes(x.astype(dtype), y, solver, l2=0.0, max_passes=300)["activations"]
    w = parameters(probe)
    assert np.abs(w).max() < 100.0  # the directions that no row sees are not entered
    exact = reference(data, w, 0.0)[0]
    assert exact == pytest.approx(probe.loss, abs=1e-5)  # what is told is of what is returned
    assert exact - minimum(data, 1e-9)[1] < 1e-2 * data.label_entropy


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_weights_are_not_rounded_where_a_fit_goes_on_in_float64(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = np.full((450, 1), -1.0, dtype=np.float32), np.arange(450) % 14
    y[28:] = 0
    weights = 10.0 ** rng.uniform(-3, 0, 450)
    probe = cxp.fit_probes(x, y, l2=2.9e-19, sample_weight=weights)["activations"]
    frequency = np.bincount(y, weights) / weights.sum()
    best = -np.sum(frequency * np.log(frequency))  # a feature without variance is of no use
    assert probe.objective == pytest.approx(best, abs=1e-10)  # of weights in float32: 2e-9 off


@pytest.mark.parametrize("seed", range(6))
def test_weights_over_twelve_orders_of_magnitude_certify_nothing_false(seed: int) -> None:
    data = random_data(120, 5, 3, seed=seed)
    weights = 10.0 ** np.random.default_rng(seed).uniform(-12, 0, 120)
    stored = Data(data.x.astype(np.float32).astype(float), data.y, 3, weights)
    probe = cxp.fit_probes(
        data.x.astype(np.float32), data.y, l2=1e-4, tol=1e-6, sample_weight=weights
    )["activations"]
    exact = reference(stored, parameters(probe), 1e-4)[0]
    assert exact - minimum(stored, 1e-4)[1] <= probe.gap + 1e-12


@pytest.mark.parametrize("mean", [1e6, 1e9, 1e12])
def test_float64_rows_far_from_zero_certify_nothing_false(mean: float) -> None:
    data = random_data(150, 4, 3)
    near = data.x
    probe = cxp.fit_probes(near + mean, data.y, l2=1e-2, tol=1e-6, max_passes=200)["activations"]
    shifted = (near + mean) - mean  # what float64 keeps of the rows
    best = minimum(Data(shifted, data.y, 3), 1e-2)[1]
    weights, bias = parameters(probe)[:12].reshape(3, 4), parameters(probe)[12:]
    centred = np.concatenate([weights.ravel(), bias + weights.sum(axis=1) * mean])
    exact = reference(Data(shifted, data.y, 3), centred, 1e-2)[0]
    assert exact - best <= probe.gap + 1e-9 * (1 + abs(bias).max() * 1e-7)


@dataclass(frozen=True)
class Endless:
    """A solver whose step does not end by itself."""

    def init(self, problem: Problem, w: Any) -> SolverState:
        return SolverState(problem.evaluate(w, keep=True))

    def step(self, problem: Problem, w: Any, state: SolverState) -> tuple[Any, SolverState]:
        while True:
            problem.logit_change(w)


def test_the_time_is_looked_at_in_the_middle_of_a_step() -> None:
    problem = random_data(200, 5, 3).problem(1e-3)
    started = time.perf_counter()
    solution = solve(problem, Endless(), tol=1e-9, max_passes=np.inf, max_seconds=0.3)
    assert solution.status == (Status.MAX_SECONDS,)
    assert time.perf_counter() - started < 30.0
    assert np.isfinite(solution.gap[0])
    again = solve(problem, SOLVERS["lbfgs"](), state=None, tol=1e-3)  # nothing is left watching
    assert again.status == (Status.CERTIFIED,)


@dataclass(frozen=True)
class Forgetful:
    """A solver that multiplies rows and tells nobody."""

    def init(self, problem: Problem, w: Any) -> SolverState:
        return SolverState(problem.evaluate(w))

    def step(self, problem: Problem, w: Any, state: SolverState) -> tuple[Any, SolverState]:
        for _ in range(3):
            problem.logit_change(w)
            for _, x in problem.rows.blocks():
                pullback(problem, problem.logits(w, x) * 0.0, x)
        return w, SolverState(problem.evaluate(w + 1e-3), steps=state.steps + 1)


def test_a_solver_that_forgets_to_count_cannot_tell_too_few_passes() -> None:
    problem = Problem(
        Rows(torch.randn(300, 4, generator=torch.Generator().manual_seed(0))),
        torch.arange(300) % 3,
        [1e-2],
        classes=3,
    )
    before = problem.passes
    solution = solve(problem, Forgetful(), tol=1e-9, max_passes=5.0)
    assert solution.status == (Status.MAX_PASSES,)
    assert solution.passes[0] - before >= 3 * 1.5 + 1.0


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_budget_of_steps_is_kept_and_every_task_counts_its_own(solver: str) -> None:
    data = random_data(120, 5, 3)
    problem = data.problem([10.0, 1e-6])
    cut = solve(problem, SOLVERS[solver](), tol=1e-10, max_steps=2)
    assert cut.steps.tolist()[1] == 2 and cut.status[1] is Status.MAX_STEPS
    assert 1 in cut.running and len(cut.history) == 3
    assert cut.steps[0] <= 2
    start = solve(problem, SOLVERS[solver](), max_steps=0)
    assert start.steps.tolist() == [0, 0]
    np.testing.assert_array_equal(start.w, problem.constant_classifier())


def test_a_budget_of_steps_holds_on_wide_rows_and_in_float64() -> None:
    wide, far = random_data(30, 90, 3), random_data(200, 4, 3)
    far = replace(far, x=far.x + 1e3)
    for data, dtype in ((wide, np.float64), (far, np.float32)):
        problem = data.problem(0.0, np, dtype)
        limits = {"max_passes": 1000.0, "max_seconds": np.inf}
        ((free,),) = solve_path(problem, np.array([1e-3]), LBFGS(), None, tol=1e-6, **limits)
        assert free.status is Status.CERTIFIED and free.steps >= 6
        ((cut,),) = solve_path(
            problem, np.array([1e-3]), LBFGS(), None, tol=1e-6, max_steps=free.steps // 2, **limits
        )
        assert cut.steps <= free.steps // 2 and cut.gap > free.gap
