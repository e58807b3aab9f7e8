"""Families without biases: the definition, the simpler certificate, every solver and library."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.certificate import estimated_gap, lower_bound
from convexprobe.problem.eigen_blocks import EigenBlocks
from convexprobe.problem.preconditioners import Curvature, Diagonal, Identity, Preconditioner
from convexprobe.problem.row_space import row_space
from convexprobe.solvers import SOLVERS, NewtonCG, Status, solve
from convexprobe.solvers.newton_cholesky import hessian
from convexprobe.solvers.starts import Previous, best_start
from tests.oracle import Data, dense_hessian, minimum, random_data, reference, tasks
from tests.problem.families import everything

FIRST_ORDER = ("adam", "rmsprop")
"""Solvers that get near, with an honest gap."""


@given(data=tasks, l2=st.sampled_from([0.0, 1e-4, 10.0]), scale=st.sampled_from([0.0, 1.0, 9.0]))
def test_everything_is_what_the_definition_says_with_biases_of_zero(
    data: Data, l2: float, scale: float
) -> None:
    problem = data.problem(l2, bias=False)
    rng = np.random.default_rng(data.k)
    w = scale * rng.standard_normal((1, problem.p))
    assert problem.p == data.k * data.x.shape[1]
    value, gradient, p = reference(data, w[0], l2)
    for at in (problem.evaluate(w), problem.evaluate(w, keep=True)):
        np.testing.assert_allclose(at.value, [value], rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(at.gradient, gradient[None], rtol=1e-9, atol=1e-11)
    v = rng.standard_normal((1, problem.p))
    product = v @ dense_hessian(data, p, l2)[: problem.p, : problem.p]
    sampled = everything(problem, at.w).curvature(v)
    np.testing.assert_allclose(sampled, product, rtol=1e-8, atol=1e-11)
    exact = (hessian(problem, at) @ v[:, :, None])[:, :, 0]
    np.testing.assert_allclose(exact, product, rtol=1e-3 if l2 == 0 else 1e-8, atol=2e-4)
    batch = problem.batch_gradient(w, np.arange(problem.n))
    np.testing.assert_allclose(batch, gradient[None], rtol=1e-9, atol=1e-11)


@settings(max_examples=300)
@given(
    data=tasks,
    l2=st.floats(-6.0, 2.0).map(lambda e: float(10.0**e)),
    scale=st.floats(-9.0, 2.0),
    near=st.booleans(),
)
@example(data=random_data(5, 1, 5), l2=1e-6, scale=2.0, near=False)
def test_no_bound_exceeds_the_optimum(data: Data, l2: float, scale: float, near: bool) -> None:
    best, optimum = minimum(data, l2, bias=False)
    problem = data.problem(l2, bias=False)
    noise = 10.0**scale * np.random.default_rng(len(data.y)).standard_normal(problem.p)
    at = problem.evaluate((noise + (best if near else 0.0))[None])
    limit = optimum + 1e-9 * max(1.0, optimum)
    bound = lower_bound(problem, at)[0]
    assert 0.0 <= bound <= limit
    assert lower_bound(problem, at, everything(problem, at.w))[0] == bound  # nothing to repair
    exact = np.sum(at.gradient**2) / (2 * l2)
    if bound > 0:
        assert at.value[0] - bound == pytest.approx(exact, rel=1e-6, abs=1e-10)
    assert estimated_gap(problem, at.gradient, at.value)[0] == pytest.approx(exact)


@settings(max_examples=60)
@given(data=tasks, l2=st.floats(-4.0, 1.0).map(lambda e: float(10.0**e)))
def test_the_gap_closes_at_the_optimum(data: Data, l2: float) -> None:
    w, optimum = minimum(data, l2, bias=False)
    problem = data.problem(l2, bias=False)
    assert lower_bound(problem, problem.evaluate(w[None]))[0] == pytest.approx(optimum, abs=1e-8)


def test_a_family_has_the_evaluations_of_its_tasks() -> None:
    data, l2 = random_data(50, 4, 3, weighted=True), [1e-3, 1.0]
    problem = data.problem(l2, bias=False)
    w = np.random.default_rng(0).standard_normal((2, problem.p))
    at = problem.evaluate(w)
    for t, penalty in enumerate(l2):
        for one in (data.problem(penalty, bias=False), problem.take_tasks([t])):
            alone = one.evaluate(w[t : t + 1])
            for name in ("value", "gradient", "entropy"):
                np.testing.assert_allclose(getattr(at, name)[t], getattr(alone, name)[0], 1e-11)


def test_the_constant_classifier_gives_every_class_that_has_rows_the_same_chance() -> None:
    data = random_data(60, 4, 3)
    problem = Data(data.x, data.y, 5).problem(0.1, bias=False)
    at = problem.evaluate(problem.constant_classifier())
    assert not problem.constant_classifier().any()
    assert at.loss[0] == pytest.approx(np.log(3))
    assert problem.label_entropy[0] == pytest.approx(data.label_entropy)  # tol's unit stays


@pytest.mark.parametrize("recipe", [Identity(), Diagonal(), Curvature(), Curvature(rank=4),
                                    Curvature(tasks=0), Curvature(tasks=0, rank=4),
                                    EigenBlocks(), EigenBlocks(leading=2, rank=4)],
                         ids=repr)  # fmt: skip
@pytest.mark.parametrize("k", [2, 4])
def test_preconditioners_are_symmetric_and_definite(recipe: Preconditioner, k: int) -> None:
    problem = random_data(60, 6, k).problem([1e-2, 1.0], bias=False)
    rng = np.random.default_rng(0)
    at = problem.evaluate(0.1 * rng.standard_normal((2, problem.p)))
    inverse = recipe.build(everything(problem, at.w))
    u, v = rng.standard_normal((2, problem.p)), rng.standard_normal((2, problem.p))
    left, right = np.sum(u * inverse.solve(v), axis=1), np.sum(v * inverse.solve(u), axis=1)
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
    assert (np.sum(v * inverse.solve(v), axis=1) > 0).all()


def test_two_classes_of_equal_curvature_are_preconditioned_exactly() -> None:
    # At zero weights every row has h = 1/2 (times I - 11^T/2), and so has the Hessian.
    data = random_data(60, 5, 2)
    problem = data.problem(1e-2, bias=False)
    at = problem.evaluate(np.zeros((1, problem.p)))
    inverse = Curvature().build(everything(problem, at.w))
    v = np.random.default_rng(0).standard_normal((1, 5))
    opposed = np.concatenate([-v, v], axis=1)  # what the classes share costs a penalty alone
    product = everything(problem, at.w).curvature(opposed)
    np.testing.assert_allclose(inverse.solve(product), opposed, rtol=1e-8)


PROBLEMS = {
    "three classes": (random_data(120, 5, 3), 1e-3),
    "two classes, weighted": (random_data(100, 5, 2, weighted=True), 1e-2),
    "wide, skewed": (random_data(30, 60, 3, skew=1.0), 1e-2),
    "an absent class": (replace(random_data(80, 4, 3), k=4), 1e-3),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_certifies_on_every_library(
    solver: str, name: str, library: ModuleType
) -> None:
    data, l2 = PROBLEMS[name]
    _, best = minimum(data, l2, bias=False)
    problem = data.problem(l2, library, bias=False)
    certifies = solver not in FIRST_ORDER
    tol, budget = (1e-4, 1000) if certifies else (1e-2, 30)
    solution = solve(problem, SOLVERS[solver](), tol=tol, max_passes=budget)
    value = reference(data, to_numpy(solution.w)[0], l2)[0]
    assert value == pytest.approx(solution.objective[0], rel=1e-9)
    assert -1e-9 <= value - best <= solution.gap[0]
    if certifies:
        assert solution.status == (Status.CERTIFIED,), solution.gap
        assert solution.gap[0] <= tol * data.label_entropy


@pytest.mark.parametrize("solver", ["auto", "lbfgs", "newton-cg", "newton-cholesky"])
def test_without_a_penalty_either_separable_data_are_recognised(solver: str) -> None:
    y = np.arange(60) % 3
    x = np.random.default_rng(0).standard_normal((60, 4)) + 20 * np.eye(3, 4)[y]
    solution = solve(Data(x, y, 3).problem(0.0, bias=False), SOLVERS[solver](), max_passes=200)
    assert solution.status == (Status.SEPARABLE,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_objective_is_the_same_function_in_the_space_of_the_rows(
    dtype: type, library: ModuleType
) -> None:
    data = random_data(20, 50, 3)  # of a mean that is not 0: no bias takes its part
    problem = data.problem([1e-3, 1.0], library, dtype, bias=False)
    space = row_space(problem)
    w = library.asarray(np.random.default_rng(0).standard_normal((2, problem.p)))
    v = space.project(w)
    inside, outside = space.problem.evaluate(v), problem.evaluate(space.lift(v))
    assert space.problem.p == 3 * 20
    np.testing.assert_allclose(to_numpy(inside.value), to_numpy(outside.value), rtol=1e-4)
    back = to_numpy(space.project(space.lift(v)))
    close = 1e-2 if dtype == np.float32 else 1e-5
    np.testing.assert_allclose(back, to_numpy(v), rtol=1e-2, atol=close)


def test_an_optimum_that_is_remembered_is_where_a_solve_starts(library: ModuleType) -> None:
    data, l2 = random_data(300, 5, 3), 1e-3
    problem = data.problem(l2, library, bias=False)
    w = minimum(data, l2, bias=False)[0][None]
    logits = np.einsum("mkd,nd->mkn", w.reshape(1, 3, 5), data.x)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))[0]
    turned = Data(data.x @ turn, data.y, 3).problem(l2, library, bias=False)
    a = library.asarray
    start = best_start(problem, Previous(a(w)))
    assert start.names == ["copied"]
    start = best_start(turned, Previous(a(w), a(logits), np.arange(300)))
    assert start.names == ["transferred"]
    solution = solve(turned, NewtonCG(), start.w, tol=1e-6, inverse=start.inverse)
    assert solution.status == (Status.CERTIFIED,)
    at_start = reference(Data(data.x @ turn, data.y, 3), to_numpy(start.w)[0], l2)[0]
    assert at_start < minimum(data, l2, bias=False)[1] + 1e-3
