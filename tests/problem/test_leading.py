"""The leading directions of the features, and all rows in their coordinates."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.leading import LEAST, directions, leading
from convexprobe.problem.objective import Problem
from tests.oracle import Data

N, D, K = 500, 256, 64


def decaying(weighted: bool = False, seed: int = 0) -> Data:
    """Rows whose variance falls with the feature's rank, and more classes than directions."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((D, D)))[0]
    y = np.concatenate([np.arange(K), rng.integers(0, K, N - K)])
    x = rng.standard_normal((N, D)) + 0.5 * rng.standard_normal((K, D))[y]
    x = 3.0 + (x / np.arange(1, D + 1)) @ turn
    weights = rng.exponential(size=N) * (rng.random(N) > 0.1) if weighted else None
    return Data(x, y, K, weights)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_basis_spans_where_features_vary_most(library: ModuleType, weighted: bool) -> None:
    data = decaying(weighted)
    top = leading(data.problem(1e-3, library))
    basis = to_numpy(top.basis)
    assert basis.shape == (D, LEAST)
    np.testing.assert_allclose(basis.T @ basis, np.eye(LEAST), atol=1e-10)
    centred = data.x - np.average(data.x, axis=0, weights=data.weights)
    covariance = centred.T @ centred / N
    best = np.linalg.eigvalsh(covariance)[::-1][:LEAST].sum()
    assert np.trace(basis.T @ covariance @ basis) > 0.99 * best


@pytest.mark.parametrize("bias", [False, True])
def test_parameters_inside_have_the_logits_of_those_that_they_lift_to(
    library: ModuleType, bias: bool
) -> None:
    data = decaying()
    problem = data.problem(1e-3, library, bias=bias)
    top = leading(problem)
    v = library.asarray(np.random.default_rng(1).standard_normal((1, top.inside.p)))
    np.testing.assert_allclose(
        to_numpy(problem.logit_change(top.lift(problem, v))),
        to_numpy(top.inside.logit_change(v)),
        atol=1e-10,
    )


def test_a_part_of_the_tasks_keeps_the_directions(library: ModuleType) -> None:
    problem = decaying().problem([1e-3, 1e-2], library)
    top = leading(problem).take_tasks([1])
    assert top.inside.m == 1 and top.inside.host_l2 == [1e-2]


def test_the_coordinates_count_as_what_they_cost() -> None:
    problem = decaying().problem(1e-3)
    before = problem.passes
    leading(problem)
    assert problem.passes - before == pytest.approx(0.5 * LEAST / K)


@pytest.mark.parametrize(
    ("n", "d", "k", "found"),
    [(100, 256, 64, 16), (100, 2048, 1000, 64), (100, 255, 64, 0), (100, 256, 63, 0), (9, 4, 2, 0)],
)
def test_directions_are_few_beside_features_and_classes(n: int, d: int, k: int, found: int) -> None:
    problem = Problem(Rows(np.zeros((n, d))), np.arange(n) % k, 1.0, classes=k)
    assert directions(problem) == found


def test_rows_that_are_streamed_are_not_read_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(np.zeros((100, 256)))
    monkeypatch.setattr(rows, "capacity", 50)
    assert directions(Problem(rows, np.arange(100) % 64, 1.0, classes=64)) == 0
