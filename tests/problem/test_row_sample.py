"""Samples of rows: what they estimate has the mean of all rows, and all rows are exact."""

from __future__ import annotations

import numpy as np

from convexprobe.problem.row_sample import Sample
from tests.oracle import random_data
from tests.problem.families import EXACT, everything, family, point


def test_batch_gradients_average_to_the_gradient() -> None:
    problem, _, _ = family()
    w = point(problem)
    batches = np.random.default_rng(0).permutation(50).reshape(5, 10)
    mean = np.mean([problem.batch_gradient(w, b) for b in batches], axis=0)
    np.testing.assert_allclose(mean, problem.evaluate(w).gradient, **EXACT)


def test_sampled_curvature_is_unbiased() -> None:
    data = random_data(400, 4, 3, weighted=True)
    problem = data.problem(1e-2)
    w, v = point(problem, scale=0.5), point(problem, 1)
    at = problem.evaluate(w)
    exact = everything(problem, at.w).curvature(v)
    draws = 300
    samples = [Sample.draw(problem, at, 80, np.random.default_rng(i)) for i in range(draws)]
    mean = np.mean([s.curvature(v) for s in samples], axis=0)
    spread = np.std([s.curvature(v) for s in samples], axis=0) / draws**0.5
    assert (np.abs(mean - exact) <= 5 * spread).all()  # five standard errors
    total = np.array([float(s.weight.sum()) for s in samples])
    assert abs(total.mean() - 1.0) <= 5 * total.std() / draws**0.5
    sizes = np.array([len(s.index) for s in samples])
    assert abs(sizes.mean() - 80) <= 2  # the sampler stops within 1 % of the size
    assert all(len(np.unique(s.index)) == len(s.index) for s in samples)


def test_a_sample_of_all_rows_is_exact() -> None:
    problem, _, _ = family()
    at = problem.evaluate(point(problem))
    sample = Sample.draw(problem, at, problem.n, np.random.default_rng(0))
    assert sorted(sample.index) == list(range(problem.n))
    v = point(problem, 1)
    np.testing.assert_allclose(sample.curvature(v), everything(problem, at.w).curvature(v), **EXACT)
    np.testing.assert_allclose(sample.weight.sum(axis=1), 1.0, **EXACT)
