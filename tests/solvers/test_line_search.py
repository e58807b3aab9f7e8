"""The line search on logits, and evaluations that read fewer rows, against what they stand for."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.objective import Problem
from convexprobe.solvers import SOLVERS
from convexprobe.solvers.base import inner
from convexprobe.solvers.line_search import TRIALS, _bracketed, line_search
from convexprobe.solvers.loop import solve
from tests.oracle import minimum, random_data, reference


def point(problem: Problem, seed: int = 0) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).standard_normal((problem.m, problem.p))


def family(library: ModuleType) -> Problem:
    return random_data(60, 4, 3, weighted=True).problem([1e-3, 0.0, 1.0], library)


def test_along_a_ray_value_and_derivatives_are_those_of_the_objective(library: ModuleType) -> None:
    problem = family(library)
    at = problem.evaluate(library.asarray(point(problem)), keep=True)
    direction = library.asarray(point(problem, 1))
    dz, t = problem.logit_change(direction), np.array([0.7, -1.3, 2.0])
    passes = problem.passes

    def along(t: np.ndarray) -> list[np.ndarray]:
        return [to_numpy(a) for a in problem.ray(at, direction, dz)(library.asarray(t))]

    value, slope, curvature = along(t)
    assert problem.passes == passes  # no product with the rows
    exact = problem.evaluate(at.w - library.asarray(t)[:, None] * direction)
    np.testing.assert_allclose(value, to_numpy(exact.value), rtol=1e-12)
    expected = -to_numpy(inner(exact.gradient, direction))
    np.testing.assert_allclose(slope, expected, rtol=1e-10, atol=1e-12)
    h = 1e-5
    numeric = (along(t + h)[1] - along(t - h)[1]) / (2 * h)
    np.testing.assert_allclose(curvature, numeric, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_step_is_near_the_exact_minimum_for_one_pass(scale: float, library: ModuleType) -> None:
    data, path = random_data(80, 4, 3), [1e-3, 1.0]
    problem = data.problem(path, library)
    at = problem.evaluate(library.asarray(point(problem)), keep=True)
    before = problem.passes
    new, t = line_search(problem, at, scale * at.gradient)
    assert problem.passes - before == 1.0
    assert (to_numpy(t) > 0).all()
    for i, l2 in enumerate(path):
        w, g = to_numpy(at.w)[i], scale * to_numpy(at.gradient)[i]
        best = minimize_scalar(lambda s, w=w, g=g, l2=l2: reference(data, w - s * g, l2)[0],
                               bracket=(0.0, 1.0 / scale)).fun  # fmt: skip
        start, reached = float(at.value[i]), float(new.value[i])
        assert best - 1e-12 <= reached
        # A fifth of the slope left: most of what an exact search gains.
        assert start - reached >= 0.9 * (start - best)
        assert reached == pytest.approx(reference(data, to_numpy(new.w)[i], l2)[0], rel=1e-12)


def test_a_valley_that_newton_s_steps_come_back_to_slowly_is_found() -> None:
    """From beyond the minimum at 0.3 of `t^21 - 1e-9 t`, Newton's steps take a twentieth off t."""
    at: Any = SimpleNamespace(value=np.zeros(1), rounding=np.zeros(1))

    def measure(t: np.ndarray) -> tuple[np.ndarray, ...]:
        return t**21 - 1e-9 * t, 21 * t**20 - 1e-9, 420 * t**19

    t, done = _bracketed(measure, at, np.array([-1e-9]), np.ones(1), 0.5, TRIALS)
    assert done and 0.2 < t[0] < 0.33, t


def test_a_task_without_a_way_down_stays() -> None:
    problem = random_data(60, 4, 3).problem([1e-2, 1e-2])
    at = problem.evaluate(point(problem), keep=True)
    up = at.gradient * np.array([[1.0], [-1.0]])
    new, t = line_search(problem, at, up)
    assert t[0] > 0 and t[1] == 0
    np.testing.assert_array_equal(new.w[1], at.w[1])
    assert new.value[1] == pytest.approx(at.value[1], rel=1e-14)


def test_logits_that_are_missing_are_made() -> None:
    problem = random_data(60, 4, 3).problem([1e-2])
    at = problem.evaluate(point(problem), keep=True)
    before = problem.passes
    with_logits, _ = line_search(problem, at, at.gradient)
    without, _ = line_search(problem, replace(at, logits=None), at.gradient)
    assert problem.passes - before == 2.5
    np.testing.assert_allclose(without.w, with_logits.w, rtol=1e-12)
    np.testing.assert_allclose(without.logits, with_logits.logits, rtol=1e-9, atol=1e-12)


def test_logits_carried_through_many_searches_stay_those_of_the_point() -> None:
    problem = random_data(300, 6, 3).problem(1e-4, np, np.float32)
    at = problem.evaluate(point(problem), keep=True)
    for _ in range(60):
        at, _ = line_search(problem, at, at.gradient)
    fresh = problem.evaluate(at.w)
    assert abs(at.value[0] - fresh.value[0]) <= fresh.rounding[0]
    np.testing.assert_allclose(at.gradient, fresh.gradient, atol=1e-5)


def test_at_a_constant_classifier_nothing_is_read(library: ModuleType) -> None:
    data = random_data(70, 4, 3, weighted=True)
    y = np.where(data.y == 2, 0, data.y)  # class 2 has no rows
    problem = replace(data, y=y).problem([1e-3, 1.0], library)
    w = np.zeros((2, problem.p))
    w[:, -3:] = [[0.3, -0.2, 0.0], [1.0, 2.0, 0.0]]
    nudge = np.zeros_like(w)
    nudge[:, 0] = 1e-30  # too small to matter, but no constant any more
    before = problem.passes
    free = problem.evaluate(library.asarray(w), keep=True)
    assert problem.passes == before
    full = problem.evaluate(library.asarray(w + nudge), keep=True)
    assert problem.passes == before + 1
    for name in ("value", "loss", "gradient", "entropy", "uncertainty", "logits"):
        expected = to_numpy(getattr(full, name))
        np.testing.assert_allclose(
            to_numpy(getattr(free, name)), expected, rtol=1e-12, atol=1e-13, err_msg=name
        )


@pytest.mark.parametrize("factor", [1e39, np.inf, np.nan])
def test_a_task_without_a_usable_direction_stays(factor: float) -> None:
    problem = random_data(50, 4, 3).problem([1e-3, 1e-3], np, np.float32)
    at = problem.evaluate(point(problem), keep=True)
    with np.errstate(all="ignore"):
        new, t = line_search(problem, at, at.gradient * np.array([[1.0], [factor]]))
    assert t[0] > 0 and new.value[0] < at.value[0]
    assert t[1] == 0
    np.testing.assert_array_equal(new.w[1], at.w[1])
    np.testing.assert_array_equal(new.logits[1], at.logits[1])
    np.testing.assert_allclose(new.value[1], at.value[1], rtol=1e-7)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e5])
@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs", "svrg"])
@pytest.mark.parametrize("tol", [1e-3, 1e-5, 1e-12])
def test_the_gap_covers_the_rounding_of_features_with_a_large_mean(
    solver: str, offset: float, tol: float
) -> None:
    # The bias cancels what a large mean adds to the logits, and float32 loses digits there.
    data, l2 = random_data(500, 8, 4), 1e-3
    stored = replace(data, x=(data.x + offset).astype(np.float32).astype(np.float64))
    # The bias is free, so that the optimum is that of centred features.
    best = minimum(replace(stored, x=stored.x - stored.x.mean(axis=0)), l2)[1]
    problem = stored.problem(l2, np, np.float32)
    solution = solve(problem, SOLVERS[solver](), tol=tol, max_passes=60)
    handed_out = solution.w[0].astype(np.float32).astype(np.longdouble)
    value = reference(replace(stored, x=stored.x.astype(np.longdouble)), handed_out, l2)[0]
    assert value - best <= solution.gap[0]


@pytest.mark.parametrize("scale", [1.0, 1e2], ids=["served", "refused"])
def test_a_whole_step_is_evaluated_first_and_searched_if_it_does_not_serve(
    scale: float, library: ModuleType
) -> None:
    problem = random_data(80, 4, 3).problem([1e-2, 1.0], library)
    at = problem.evaluate(library.asarray(point(problem)), keep=True)
    logits, before = to_numpy(at.logits).copy(), problem.passes
    new, t = line_search(problem, at, scale * at.gradient, end_first=True)
    spent = problem.passes - before
    if scale == 1.0:
        assert spent == 1.0 and (to_numpy(t) == 1.0).all()
    else:
        assert spent == 1.5 and (to_numpy(t) < 1.0).all()
        left = inner(new.gradient, at.gradient) / inner(at.gradient, at.gradient)
        assert (to_numpy(abs(left)) <= 0.2).all()
    assert (to_numpy(new.value) < to_numpy(at.value)).all()
    exact = problem.evaluate(new.w, keep=True)
    np.testing.assert_allclose(to_numpy(new.value), to_numpy(exact.value), rtol=1e-12)
    np.testing.assert_allclose(to_numpy(new.logits), to_numpy(exact.logits), atol=1e-10)
    np.testing.assert_array_equal(to_numpy(at.logits), logits)


def test_a_direction_that_is_not_finite_leaves_its_task_where_it_is() -> None:
    problem = random_data(80, 4, 3).problem([1e-2, 1.0])
    at = problem.evaluate(point(problem), keep=True)
    direction = at.gradient.copy()
    direction[0, :] = np.inf
    with np.errstate(all="ignore"):
        new, t = line_search(problem, at, direction, end_first=True)
    assert t[0] == 0.0 and t[1] > 0.0
    np.testing.assert_array_equal(new.w[0], at.w[0])
    assert np.isfinite(new.value).all() and new.value[1] < at.value[1]
