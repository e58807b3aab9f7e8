"""Families in the public API: concepts, cross-validation, paths, and what they share."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from conftest import random_data

import convexprobe.preconditioner
from convexprobe._array import to_numpy
from convexprobe.preconditioner import Curvature
from convexprobe.sample import Sample

# One eigendecomposition for every task


@pytest.mark.parametrize(
    ("n", "d", "rank"),
    [(60, 5, 1024), (20, 50, 1024), (60, 30, 8)],
    ids=["dense", "low rank", "low rank of fewer rows"],
)
def test_one_eigendecomposition_serves_as_well_as_an_inverse_a_task(
    n: int, d: int, rank: int, library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_data(n, d, 3, weighted=True).problem([1e-4, 1e-2, 1.0, 10.0], library)
    rng = np.random.default_rng(0)
    at = problem.evaluate(library.asarray(0.3 * rng.standard_normal((4, problem.p))))
    sample = Sample.draw(problem, at, n, rng)
    v = library.asarray(rng.standard_normal((4, problem.p)))
    out = []
    for limit in (0, 99):
        monkeypatch.setattr(convexprobe.preconditioner, "SPECTRAL", limit)
        inverse = Curvature(rank=rank).build(sample)
        out.append([to_numpy(inverse.solve(v)), type(inverse)])
        rest = inverse.tasks([3, 1]).solve(v[2:, :])  # type: ignore[attr-defined]  # both have it
        expected = to_numpy(inverse.solve(library.stack([v[0, :], v[3, :], v[0, :], v[2, :]])))
        np.testing.assert_allclose(to_numpy(rest), expected[[3, 1]], rtol=1e-9, atol=1e-12)
    (one, spectral), (each, separate) = out
    assert spectral is not separate
    np.testing.assert_allclose(one, each, rtol=1e-6, atol=1e-8 * np.abs(each).max())
