"""Eigen-blocks: the inverse of each class's own curvature, against a dense float64 computation."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.eigen_blocks import EigenBlocks
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_sample import Sample
from tests.oracle import Data, dense_hessian, random_data, reference

CASES = pytest.mark.parametrize(("n", "d"), [(80, 6), (15, 40)], ids=["full", "low rank"])


def sampled(problem: Problem, library: ModuleType = np) -> Sample:
    """All rows, at a random point that both tasks share."""
    w = 0.3 * np.random.default_rng(0).standard_normal((1, problem.p))
    at = problem.evaluate(library.asarray(np.repeat(w, problem.m, axis=0)))
    return Sample.draw(problem, at, problem.n, np.random.default_rng(0))


def matrices(problem: Problem, sample: Sample, recipe: EigenBlocks, xp: ModuleType) -> np.ndarray:
    """What the inverse does to every unit vector, `(m, p, p)`."""
    inverse, unit = recipe.build(sample), np.eye(problem.p)
    columns = [
        to_numpy(inverse.solve(xp.asarray(np.repeat(e[None], problem.m, axis=0)))) for e in unit
    ]
    return np.stack(columns, axis=2)


def dense(sample: Sample, l2: float, leading: int) -> np.ndarray:
    """The inverse `(p, p)` from its definition, class by class, by dense float64 algebra."""
    x, p = to_numpy(sample.x), to_numpy(sample.p)[0]
    (k, n), d = p.shape, x.shape[1]
    h = p * (1 - p) * to_numpy(sample.weight)[0]
    shared = h.sum(axis=0)
    mean = shared @ x / shared.sum()
    _, values, v = np.linalg.svd(np.sqrt(shared)[:, None] * (x - mean), full_matrices=False)
    v = v[values**2 > 1e-5 * values[0] ** 2].T if n < d else v.T
    means = (h @ (x - mean)) / h.sum(axis=1)[:, None]
    blocks = []
    for c in range(k):
        own = (x - mean - means[c]) @ v
        blocks.append(own.T @ (h[c][:, None] * own))
    ridge = l2 + 1e-6 * np.mean([np.diag(block) for block in blocks])
    out = np.zeros((k * (d + 1), k * (d + 1)))
    for c, block in enumerate(blocks):
        block = block + ridge * np.eye(len(block))
        diagonal = np.diag(block).copy()
        kept = np.arange(len(block)) < leading
        block = np.where(np.outer(kept, kept), block, np.diag(diagonal))
        rest = 1.0 / max(0.5 / np.mean(1.0 / diagonal), ridge)
        weights = v @ np.linalg.inv(block) @ v.T + rest * (np.eye(d) - v @ v.T) * (n < d)
        shift = np.eye(d + 1)
        shift[:d, d] = -(mean + v @ (v.T @ means[c]))
        middle = np.zeros((d + 1, d + 1))
        middle[:d, :d], middle[d, d] = weights, 1.0 / h[c].sum()
        place = np.r_[c * d : (c + 1) * d, k * d + c]
        out[np.ix_(place, place)] = shift.T @ middle @ shift
    return out


@CASES
@pytest.mark.parametrize("leading", [2, 40])
def test_the_inverse_is_the_one_of_its_definition(
    n: int, d: int, leading: int, library: ModuleType
) -> None:
    l2 = [1e-3, 1.0]
    problem = random_data(n, d, 3, weighted=True).problem(l2, library)
    sample = sampled(problem, library)
    found = matrices(problem, sample, EigenBlocks(leading), library)
    for matrix, penalty in zip(found, l2, strict=True):
        expected = dense(sample, penalty, leading)
        np.testing.assert_allclose(matrix, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())


def test_with_all_directions_leading_it_inverts_the_hessian_s_blocks() -> None:
    data, l2 = random_data(80, 6, 3, weighted=True), 1e-2
    problem = data.problem(l2)
    sample = sampled(problem)
    w = 0.3 * np.random.default_rng(0).standard_normal(problem.p)
    hessian = dense_hessian(data, reference(data, w, l2)[2], l2)
    (matrix,) = matrices(problem, sample, EigenBlocks(), np)
    for c in range(3):
        place = np.ix_(np.r_[c * 6 : c * 6 + 6, 18 + c], np.r_[c * 6 : c * 6 + 6, 18 + c])
        # The ridge of 1e-6 of the mean curvature, relative to l2 = 1e-2, is what is left.
        np.testing.assert_allclose(matrix[place] @ hessian[place], np.eye(7), atol=1e-4)


@CASES
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_symmetric_positive_definite(n: int, d: int, dtype: type) -> None:
    problem = random_data(n, d, 3, skew=1.0).problem([0.0, 1e-6, 1.0], dtype=dtype)
    rounding = 1e-9 if dtype is np.float64 else 1e-4
    for matrix in matrices(problem, sampled(problem), EigenBlocks(4), np):
        scale = np.sqrt(np.abs(np.outer(np.diag(matrix), np.diag(matrix))))
        np.testing.assert_allclose(matrix / scale, matrix.T / scale, atol=rounding)
        assert np.linalg.eigvalsh((matrix + matrix.T) / (2 * scale)).min() > 0


@CASES
def test_tasks_taken_apart_have_the_inverses_of_the_family(n: int, d: int) -> None:
    base = random_data(n, d, 3)
    problem = base.problem([1e-3, 1e-2, 1.0])
    inverse = EigenBlocks(4).build(sampled(problem))
    v = np.random.default_rng(1).standard_normal((3, problem.p))
    whole = inverse.solve(v)
    apart = inverse.take_tasks([2, 0])  # type: ignore[attr-defined]  # a PerTask
    np.testing.assert_allclose(apart.solve(v[[2, 0]]), whole[[2, 0]], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_far_better_conditioned_than_no_preconditioner(seed: int) -> None:
    data = random_data(300, 10, 4, seed, skew=1.0)
    data = Data(data.x * np.logspace(0, -2, 10), data.y, 4)
    problem = data.problem(1e-5)
    sample = sampled(problem)
    w = 0.3 * np.random.default_rng(0).standard_normal(problem.p)
    hessian = dense_hessian(data, reference(data, w, 1e-5)[2], 1e-5)
    (matrix,) = matrices(problem, sample, EigenBlocks(4), np)

    def condition(values: np.ndarray) -> float:
        """Without the direction of equal biases, along which there is no curvature."""
        values = np.sort(values.real)[1:]
        return float(values[-1] / values[0])

    plain = condition(np.linalg.eigvals(hessian))
    # Weights that all classes share have the penalty's curvature alone: blocks cannot see that.
    visible = np.linalg.eigvals(matrix @ hessian).real
    visible = np.sort(visible)[11:]
    assert visible[-1] / visible[0] < 1e-2 * plain
