"""Every preconditioner: symmetric positive definite, exact where it should be, and good enough."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from convexprobe.arrays.backend import to_numpy
from convexprobe.probes.fit import fit_probes
from convexprobe.problem.preconditioners import Curvature, Diagonal, Identity, Preconditioner
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers import LBFGS, NewtonCG
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Status
from tests.oracle import minimum, random_data

PRECONDITIONERS: dict[str, Preconditioner] = {
    "identity": Identity(),
    "diagonal": Diagonal(),
    "curvature": Curvature(),
    "low rank": Curvature(rank=8),
}


@pytest.mark.parametrize("preconditioner", PRECONDITIONERS)
@pytest.mark.parametrize("solver", [NewtonCG, LBFGS])
def test_every_preconditioner_reaches_the_optimum(
    solver: Any, preconditioner: str, library: ModuleType
) -> None:
    data, path = random_data(150, 12, 3), [1e-3, 1e-1]
    chosen = solver(preconditioner=PRECONDITIONERS[preconditioner])
    solution = solve(data.problem(path, library), chosen, tol=1e-5, max_passes=1000)
    assert solution.status == (Status.CERTIFIED,) * 2
    for t, l2 in enumerate(path):
        best = minimum(data, l2)[1]
        assert -1e-10 <= solution.objective[t] - best <= solution.gap[t] <= 1e-5 * 1.1


@pytest.mark.parametrize("preconditioner", PRECONDITIONERS)
@pytest.mark.parametrize(("n", "d"), [(60, 5), (20, 50)])
@pytest.mark.parametrize("l2", [[1e-3, 1.0], [0.0, 1e-6]])
def test_inverses_are_symmetric_positive_definite(
    preconditioner: str, n: int, d: int, l2: list[float], library: ModuleType
) -> None:
    problem = random_data(n, d, 3, weighted=True).problem(l2, library)
    rng = np.random.default_rng(0)
    at = problem.evaluate(library.asarray(0.3 * rng.standard_normal((2, problem.p))))
    inverse = PRECONDITIONERS[preconditioner].build(Sample.draw(problem, at, n, rng))
    columns = [
        to_numpy(inverse.solve(library.asarray(np.stack([e, e]))) + 0.0) for e in np.eye(problem.p)
    ]
    for matrix in np.stack(columns, axis=2):
        scale = np.sqrt(np.abs(np.outer(np.diag(matrix), np.diag(matrix))))
        # Rounding of an inverse with condition 1e10 (the floor at l2 = 0), relative to its entries.
        np.testing.assert_allclose(matrix / scale, matrix.T / scale, atol=1e-5)
        assert np.linalg.eigvalsh((matrix + matrix.T) / 2).min() > 0


def test_curvature_is_exact_for_two_classes() -> None:
    # With k = 2, diag P - P P^T = h (I - 11^T / 2) exactly; what both classes share has the
    # penalty's curvature alone. (Equal changes of both biases have none.)
    data = random_data(80, 4, 2)
    problem = data.problem(1e-2)
    rng = np.random.default_rng(0)
    at = problem.evaluate(0.3 * rng.standard_normal((1, problem.p)))
    sample = Sample.draw(problem, at, 80, rng)
    v = problem.join(rng.standard_normal((1, 2, 4)), np.array([[0.7, -0.7]]))
    back = Curvature().build(sample).solve(sample.curvature(v))
    np.testing.assert_allclose(back, v, rtol=1e-8, atol=1e-10)


def test_low_rank_with_all_rows_equals_dense() -> None:
    problem = random_data(30, 12, 3).problem([1e-2, 1.0])
    rng = np.random.default_rng(0)
    at = problem.evaluate(0.3 * rng.standard_normal((2, problem.p)))
    sample, v = Sample.draw(problem, at, 30, rng), rng.standard_normal((2, problem.p))
    dense = Curvature().build(sample)
    # Twelve features are more than rank 11, so 11 rows stand for 30: not the same matrix; with 30
    # rows as the rank nothing is lost, and d > 2 r forces the low-rank form on wide data below.
    assert np.abs(Curvature(rank=11).build(sample).solve(v) - dense.solve(v)).max() > 1e-6
    wide = random_data(10, 25, 3).problem([1e-2, 1.0])
    at = wide.evaluate(0.3 * rng.standard_normal((2, wide.p)))
    sample, v = Sample.draw(wide, at, 10, rng), rng.standard_normal((2, wide.p))
    h = (1 - np.sum(sample.p**2, axis=1)) / 2 * sample.weight
    shared = h.mean(axis=0)
    mean = shared @ sample.x / shared.sum()
    c = (sample.x - mean).T @ np.diag(shared) @ (sample.x - mean)
    out, _ = wide.split(Curvature().build(sample).solve(v))
    weights, bias = wide.split(v)
    for t, l2 in enumerate([1e-2, 1.0]):
        a = h[t].sum() / shared.sum()
        exact = np.linalg.solve(a * c + l2 * np.eye(25), (weights[t] - bias[t][:, None] * mean).T).T
        np.testing.assert_allclose(out[t], exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rank", [10, 20, 40], ids=["of some drawn", "of all drawn", "of fewer"])
def test_a_sketch_allows_for_curvature_of_the_rows_that_it_leaves_out(rank: int) -> None:
    problem = random_data(200, 30, 3).problem(1e-6)
    w = problem.constant_classifier()
    sample = Sample.of(problem, w, np.arange(0, 200, 10), np.full(20, 10.0))
    all_rows = Sample.of(problem, w, np.arange(200), np.ones(200))
    v = problem.join(np.random.default_rng(0).standard_normal((1, 3, 30)), np.zeros((1, 3)))
    exact = Curvature().build(all_rows).solve(v)
    sketched = Curvature(rank=rank).build(sample).solve(v)
    # With `1 / l2` in those directions it would be a hundred thousand times as long.
    assert 0.1 < np.linalg.norm(sketched) / np.linalg.norm(exact) < 10.0


@pytest.mark.parametrize(("n", "d"), [(60, 5), (20, 50)], ids=["dense", "low rank"])
def test_many_classes_have_a_scale_of_their_own(n: int, d: int) -> None:
    problem = random_data(n, d, 4, weighted=True, skew=1.0).problem([1e-2, 1.0])
    rng = np.random.default_rng(0)
    at = problem.evaluate(0.3 * rng.standard_normal((2, problem.p)))
    sample, v = Sample.draw(problem, at, n, rng), rng.standard_normal((2, problem.p))
    h = (1 - np.sum(sample.p**2, axis=1)) / 3 * sample.weight
    shared = h.mean(axis=0)
    mean = shared @ sample.x / shared.sum()
    c = (sample.x - mean).T @ np.diag(shared) @ (sample.x - mean)
    mass = 4 / 3 * np.sum(sample.p * (1 - sample.p) * sample.weight[:, None, :], axis=2)
    np.testing.assert_allclose(mass.mean(axis=1), h.sum(axis=1))  # what one scale would be
    assert mass.max() > 2 * mass.min()
    out, out_bias = problem.split(Curvature(classes=2).build(sample).solve(v))
    weights, bias = problem.split(v)
    for t, l2 in enumerate([1e-2, 1.0]):
        for j in range(4):
            a = mass[t, j] / shared.sum()
            centred = weights[t, j] - bias[t, j] * mean
            exact = np.linalg.solve(a * c + l2 * np.eye(d), centred)
            np.testing.assert_allclose(out[t, j], exact, rtol=1e-7, atol=1e-9)
            expected = bias[t, j] / mass[t, j] - exact @ mean
            np.testing.assert_allclose(out_bias[t, j], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("n", "d", "rank"),
    [(60, 5, 1024), (20, 50, 1024), (60, 30, 8)],
    ids=["dense", "low rank", "low rank of fewer rows"],
)
def test_one_eigendecomposition_serves_as_well_as_an_inverse_a_task(
    n: int, d: int, rank: int, library: ModuleType
) -> None:
    # Of two classes, so that a scale for each is the same as one for both.
    problem = random_data(n, d, 2, weighted=True).problem([1e-4, 1e-2, 1.0, 10.0], library)
    rng = np.random.default_rng(0)
    at = problem.evaluate(library.asarray(0.3 * rng.standard_normal((4, problem.p))))
    sample = Sample.draw(problem, at, n, rng)
    v = library.asarray(rng.standard_normal((4, problem.p)))
    out = []
    for limit in (0, 99):
        inverse = Curvature(rank=rank, tasks=limit).build(sample)
        out.append([to_numpy(inverse.solve(v)), type(inverse)])
        rest = inverse.take_tasks([3, 1]).solve(v[2:, :])  # type: ignore[attr-defined]  # both have it
        expected = to_numpy(inverse.solve(library.stack([v[0, :], v[3, :], v[0, :], v[2, :]])))
        np.testing.assert_allclose(to_numpy(rest), expected[[3, 1]], rtol=1e-9, atol=1e-12)
    (one, spectral), (each, separate) = out
    assert spectral is not separate
    np.testing.assert_allclose(one, each, rtol=1e-6, atol=1e-8 * np.abs(each).max())


def test_few_rows_stand_for_all_where_most_are_certain() -> None:
    """Every tenth of the rows that a separating plane is sure of took 180 passes, not 39."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 600)) / np.sqrt(1 + np.arange(600) / 4)
    y = x @ rng.standard_normal(600) > 0
    solver = LBFGS(Curvature(rank=200))
    probe = fit_probes(x.astype(np.float32), y, l2=1e-5, solver=solver)["activations"]
    assert probe.status is Status.CERTIFIED and probe.passes < 90


@pytest.mark.parametrize("classes", [2, 256], ids=["one eigendecomposition", "an inverse a task"])
def test_damping_adds_the_mean_curvature_of_the_constant_classifier(classes: int) -> None:
    data = random_data(200, 6, 3)
    plain = data.problem(1e-3)
    frequency = np.bincount(data.y) / 200
    mean = (1.0 - (frequency**2).sum()) / 2 * data.x.var(axis=0).mean()
    damped = data.problem(1e-3 + 2.0 * mean)
    w = np.random.default_rng(0).standard_normal((1, plain.p))  # wherever it is built
    sample, other = (
        Sample.draw(problem, problem.evaluate(w), 200, np.random.default_rng(0))
        for problem in (plain, damped)
    )
    v = np.random.default_rng(1).standard_normal((1, plain.p))
    np.testing.assert_allclose(
        Curvature(classes=classes, damping=2.0).build(sample).solve(v),
        Curvature(classes=classes).build(other).solve(v),
        rtol=1e-9,
    )
