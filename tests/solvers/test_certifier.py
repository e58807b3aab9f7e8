"""The certifier: true bounds, bought when they may end a solve."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers import LBFGS, Status, solve
from convexprobe.solvers.certifier import lower_bounds
from tests.oracle import minimum, random_data


def near(problem: Problem, w: np.ndarray, away: float, seed: int = 0) -> Evaluation:
    noise = away * np.random.default_rng(seed).standard_normal(problem.p)
    return problem.evaluate((w + noise)[None])


@settings(max_examples=200)
@given(
    n=st.integers(8, 60),
    d=st.integers(1, 6),
    k=st.integers(2, 4),
    seed=st.integers(0, 999),
    weighted=st.booleans(),
    l2=st.floats(-5.0, 0.0).map(lambda e: 10.0**e),
    away=st.floats(-6.0, 1.0).map(lambda e: 10.0**e),
    target=st.floats(-8.0, -1.0).map(lambda e: 10.0**e),
    part=st.floats(0.1, 1.0),
)
def test_no_bound_exceeds_the_optimum(
    n: int, d: int, k: int, seed: int, weighted: bool, l2: float, away: float, target: float,
    part: float,
) -> None:  # fmt: skip
    data = random_data(n, d, k, seed, weighted=weighted)
    w, best = minimum(data, l2)
    problem = data.problem(l2)
    at = near(problem, w, away, seed)
    sample = Sample.draw(problem, at, max(2, int(part * n)), np.random.default_rng(seed))
    goal = np.array([target])
    for drawn in (sample, None):
        bound = lower_bounds(problem, at, drawn, goal, step=0, last=True)
        assert 0.0 <= bound[0] <= best + 1e-9 * max(1.0, best)


def test_a_target_below_rounding_is_still_answered_with_a_bound() -> None:
    for seed in range(8):
        data = random_data(120, 5, 3, seed)
        solution = solve(data.problem(1e-2, dtype=np.float32), LBFGS(), tol=1e-12)
        assert solution.status == (Status.ROUNDING,)
        assert solution.gap[0] < 1e-5  # and not the whole objective


def test_without_a_penalty_nothing_is_spent_on_a_bound_that_is_zero() -> None:
    problem = random_data(200, 5, 3).problem(0.0)
    at = problem.evaluate(np.ones((1, problem.p)))
    before = problem.passes
    bound = lower_bounds(problem, at, None, 10.0 * at.value, step=0, last=True)
    assert bound[0] == 0.0 and problem.passes == before


def test_nothing_is_spent_far_from_the_target() -> None:
    data = random_data(200, 5, 3)
    problem = data.problem(1e-6)
    at = near(problem, minimum(data, 1e-6)[0], 1.0)
    before = problem.passes
    bound = lower_bounds(problem, at, None, np.array([1e-9]), step=1, last=False)
    assert bound[0] == 0.0 and problem.passes == before
