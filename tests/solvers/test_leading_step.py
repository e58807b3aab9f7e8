"""The step for all rows in the leading directions: what it leaves, and that it harms nothing."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

import convexprobe.solvers.leading_step
from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.certificate import estimated_gap
from convexprobe.problem.leading import leading
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.solvers.lbfgs import LBFGS
from convexprobe.solvers.leading_step import leading_step, pays
from convexprobe.solvers.line_search import line_search
from convexprobe.solvers.loop import solve
from tests.problem.test_leading import decaying

L2 = 1e-3


def near(problem: Problem, library: ModuleType) -> Evaluation:
    """A point on the way, with its logits."""
    w = solve(problem, LBFGS(), max_steps=4, tol=1e-9).w
    noise = 0.003 * np.random.default_rng(0).standard_normal(tuple(w.shape))
    return problem.evaluate(w + library.asarray(noise), keep=True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_newton_step_of_all_rows_in_these_directions(
    library: ModuleType, bias: bool, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convexprobe.solvers.leading_step, "TOLERANCE", 1e-12)
    monkeypatch.setattr(convexprobe.solvers.leading_step, "ITERATIONS", 2000)
    problem = decaying(weighted).problem(L2, library, bias=bias)
    at, top = near(problem, library), leading(problem)
    step = leading_step(problem, top, at.w, library.asarray(at.logits, copy=True))
    # H step = gradient, seen from inside: by differences of gradients.
    t = 1e-5
    ends = [problem.evaluate(at.w + sign * t * step).gradient for sign in (1, -1)]
    product = (to_numpy(ends[0]) - to_numpy(ends[1]))[0] / (2 * t)

    def seen(v: np.ndarray) -> np.ndarray:
        weights, offset = (to_numpy(a)[0] for a in problem.split(library.asarray(v[None])))
        weights = weights - offset[:, None] * to_numpy(top.centre)  # as coordinates are centred
        return np.append(weights @ to_numpy(top.basis), offset)

    gradient = seen(to_numpy(at.gradient)[0])
    np.testing.assert_allclose(seen(product), gradient, atol=1e-5 * np.abs(gradient).max())


def test_it_leaves_little_of_the_gradient_there_and_the_logits_of_where_it_leads(
    library: ModuleType,
) -> None:
    problem = decaying().problem(L2, library)
    at, top = near(problem, library), leading(problem)
    logits = library.asarray(at.logits, copy=True)
    w = at.w - leading_step(problem, top, at.w, logits)
    exact = problem.evaluate(w, keep=True)
    np.testing.assert_allclose(to_numpy(logits), to_numpy(exact.logits), atol=1e-8)

    def left(gradient: np.ndarray) -> float:
        weights, offset = problem.split(library.asarray(gradient))
        weights = weights - offset[:, :, None] * top.centre
        return float(np.linalg.norm(to_numpy(weights @ top.basis)))

    assert left(to_numpy(exact.gradient)) < 0.3 * left(to_numpy(at.gradient))
    assert float(exact.value[0]) < float(at.value[0])


def test_a_line_search_with_it_ends_nearer_and_at_its_own_logits(library: ModuleType) -> None:
    problem = decaying().problem(L2, library)
    at = near(problem, library)
    plain, _ = line_search(problem, at, at.gradient)
    both, _ = line_search(problem, at, at.gradient, leading=leading(problem))
    gap = [float(estimated_gap(problem, e.gradient, e.value)[0]) for e in (plain, both)]
    assert gap[1] < 0.5 * gap[0] and float(both.value[0]) < float(plain.value[0])
    exact = problem.evaluate(both.w, keep=True)
    np.testing.assert_allclose(to_numpy(both.logits), to_numpy(exact.logits), atol=1e-8)


def test_a_step_that_raises_the_objective_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def wild(problem: Problem, top: object, w: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits += 1e3
        logits[:, 0, :] -= 1e4
        return np.full_like(w, 1e3)

    module = sys.modules["convexprobe.solvers.line_search"]
    problem = decaying().problem(L2)
    at, top = near(problem, np), leading(problem)
    plain, _ = line_search(problem, at, at.gradient)
    monkeypatch.setattr(module, "leading_step", wild)
    new, _ = line_search(problem, at, at.gradient, leading=top)
    np.testing.assert_allclose(new.w, plain.w)
    np.testing.assert_allclose(new.value, plain.value)


def test_it_pays_once_a_bound_could_be_above_0() -> None:
    problem = decaying().problem(L2)
    start = problem.evaluate(problem.constant_classifier(), keep=True)
    assert not pays(problem, replace(start, gradient=1e3 + start.gradient))
    assert pays(problem, replace(start, gradient=0.0 * start.gradient))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_solve_with_it_is_certified_and_right(dtype: type) -> None:
    data = decaying()
    solution = solve(data.problem([L2, 10 * L2], dtype=dtype), LBFGS(), tol=1e-3)
    exact = solve(data.problem([L2, 10 * L2]), LBFGS(), tol=1e-8)
    assert {s.name for s in solution.status} == {"CERTIFIED"}
    for task in range(2):
        excess = solution.objective[task] - (exact.objective[task] - exact.gap[task])
        assert -1e-6 < excess <= solution.gap[task] + 1e-6
