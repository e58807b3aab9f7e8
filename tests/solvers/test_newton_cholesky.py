"""Exact Newton: its Hessian is the derivative of the gradient."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.objective import Problem
from convexprobe.solvers import NewtonCholesky, Status, solve
from convexprobe.solvers.newton_cholesky import hessian
from tests.oracle import minimum, random_data


@pytest.mark.parametrize("k", [2, 4])
def test_the_hessian_is_the_finite_difference_of_the_gradient(k: int, library: ModuleType) -> None:
    a, data = library.asarray, random_data(50, 3, k, weighted=True)
    labels = np.stack([data.y, np.roll(data.y, 1)])
    problem = Problem(Rows(a(data.x)), a(labels), [1e-3, 1.0], classes=k, weights=a(data.weights))
    rng = np.random.default_rng(0)
    w, v, h = rng.standard_normal((2, problem.p)), rng.standard_normal((2, problem.p)), 1e-5
    v[:, 3 * k :] -= v[:, 3 * k :].mean(axis=1, keepdims=True)  # equal biases get a curvature
    matrix = to_numpy(hessian(problem, problem.evaluate(a(w), keep=True)))
    up, down = (to_numpy(problem.evaluate(a(w + t * h * v)).gradient) for t in (1, -1))
    # Central differences: error h^2 times a third derivative, plus eps / h of rounding.
    product = np.einsum("mij,mj->mi", matrix, v)
    np.testing.assert_allclose(product, (up - down) / (2 * h), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(matrix, np.swapaxes(matrix, 1, 2), atol=1e-12)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_a_handful_of_steps_reach_the_optimum(library: ModuleType) -> None:
    data = random_data(80, 4, 3)
    solution = solve(data.problem([1e-4, 1e-1], library), NewtonCholesky(), tol=1e-9)
    assert solution.status == (Status.CERTIFIED,) * 2
    assert len(solution.history) <= 12
    for t, l2 in enumerate((1e-4, 1e-1)):
        assert solution.objective[t] - minimum(data, l2)[1] <= solution.gap[t]
