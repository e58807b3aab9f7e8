"""Wide rows: the objective is the same function in the space of the rows, and so is the answer."""

from __future__ import annotations

from time import sleep
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import convexprobe.problem.row_space
import convexprobe.solvers.path
from convexprobe import fit_probes
from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_space import is_wide, row_space
from convexprobe.solvers.solution import Status
from tests.oracle import Data, minimum, random_data


def wide(n: int = 20, d: int = 50, *, weighted: bool = False, repeated: bool = False) -> Data:
    """Wide rows, if asked for with every row there twice: a Gram matrix of half the rank."""
    data = random_data(n, d, 3, weighted=weighted)
    if not repeated:
        return data
    y = np.concatenate([data.y, np.roll(data.y, 1)])  # other labels, or the copies would tell
    return Data(np.concatenate([data.x, data.x]), y, 3)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_objective_is_the_same_function(weighted: bool, library: ModuleType) -> None:
    problem = wide(weighted=weighted).problem([1e-3, 1.0], library)
    space = row_space(problem)
    w = library.asarray(np.random.default_rng(0).standard_normal((2, problem.p)))
    v = space.project(w)
    inside, outside = space.problem.evaluate(v), problem.evaluate(space.lift(v))
    np.testing.assert_allclose(to_numpy(inside.value), to_numpy(outside.value), rtol=1e-6)
    np.testing.assert_allclose(to_numpy(inside.loss), to_numpy(outside.loss), rtol=1e-6)
    np.testing.assert_allclose(
        to_numpy(space.project(space.lift(v))), to_numpy(v), rtol=1e-5, atol=1e-5
    )


def test_zero_weights_are_projected_with_their_biases(library: ModuleType) -> None:
    problem = wide().problem([1e-3, 1.0], library)
    space, start = row_space(problem), problem.constant_classifier()
    inside = space.project(start)
    np.testing.assert_array_equal(to_numpy(space.lift(inside)), to_numpy(start))
    at, there = problem.evaluate(start), space.problem.evaluate(inside)
    np.testing.assert_allclose(to_numpy(there.value), to_numpy(at.value), rtol=1e-6)


def test_the_gram_matrix_adds_up_over_parts_of_the_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = wide().problem(1.0)
    whole = row_space(problem).factor
    monkeypatch.setattr(convexprobe.problem.row_space, "COLUMNS", 7)
    np.testing.assert_allclose(row_space(problem).factor, whole, rtol=1e-4, atol=1e-4)


def test_projection_keeps_logits_and_drops_what_no_row_sees() -> None:
    problem = wide().problem(1.0)
    space = row_space(problem)
    w = np.random.default_rng(0).standard_normal((1, problem.p))
    back = space.lift(space.project(w))
    x = problem.rows.matrix
    np.testing.assert_allclose(problem.logits(back, x), problem.logits(w, x), rtol=1e-5, atol=1e-5)
    assert problem.evaluate(back).value < problem.evaluate(w).value - 1.0  # the norm that is gone


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("repeated", [False, True])
def test_wide_rows_are_solved_to_the_optimum(
    dtype: type, repeated: bool, library: ModuleType
) -> None:
    data = wide(repeated=repeated)
    penalties = [1e-3, 1e-1]
    validation = (library.asarray(data.x.astype(dtype)), data.y)
    probe = fit_probes(
        validation[0], data.y, l2=penalties, tol=1e-4, validation=validation, max_passes=3000
    )["activations"]
    assert len(probe.path) == 2
    for point in probe.path:
        assert point.status is Status.CERTIFIED
    best = minimum(data, probe.l2)[1]
    assert best - 1e-6 <= probe.objective <= best + probe.gap


def test_they_are_solved_there_and_the_budget_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = wide(20, 200), []

    def spy(problem: Problem) -> object:
        seen.append(problem.d)
        return row_space(problem)

    monkeypatch.setattr(convexprobe.solvers.path, "row_space", spy)
    probe = fit_probes(data.x, data.y, l2=1e-3)["activations"]
    assert probe.status is Status.CERTIFIED and seen == [200]
    stopped = fit_probes(data.x, data.y, l2=1e-3, max_passes=0.6)["activations"]
    assert stopped.status is Status.MAX_PASSES and stopped.passes < probe.passes
    fit_probes(data.x, data.y, l2=0.0, max_passes=50)  # nothing bounds a solve without a penalty
    fit_probes(data.x[:, :30], data.y, l2=1e-3)
    assert seen == [200]  # a budget below its price, no penalty, few features: solved as they are
    chosen = fit_probes(data.x, data.y, l2=[1e-3, 1e-1])["activations"]
    assert chosen.status is Status.CERTIFIED and seen == [200] * 3  # the path, and then the refit


def test_what_counts_as_wide() -> None:
    assert is_wide(wide(20, 40).problem(1.0)) and not is_wide(wide(20, 39).problem(1.0))


def test_rows_of_a_large_mean() -> None:
    data = wide()
    shifted = Data(data.x + 1e3, data.y, 3)
    space = row_space(shifted.problem(1e-2, dtype=np.float32))
    plain = row_space(data.problem(1e-2))
    v = np.random.default_rng(0).standard_normal((1, plain.problem.p))
    a, b = space.problem.evaluate(v), plain.problem.evaluate(v)
    np.testing.assert_allclose(a.value, b.value, rtol=2e-3)  # float32 rows of 1e3 hold 6e-5


@pytest.mark.parametrize("price", [0.0, 1e9])
def test_a_budget_that_the_space_would_exceed_is_spent_on_the_rows(
    price: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convexprobe.solvers.path, "row_space_passes", lambda family: price)
    data = random_data(90, 200, 3)  # a Gram matrix is 15 passes
    few = fit_probes(data.x, data.y, l2=1e-6, tol=1e-9, max_passes=10)["activations"]
    assert few.status is Status.MAX_PASSES and few.passes < 20


def test_the_solves_of_a_row_space_share_a_budget_and_a_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(problem: Problem) -> object:
        sleep(0.2)
        return row_space(problem)

    monkeypatch.setattr(convexprobe.solvers.path, "row_space", slow)
    data = random_data(40, 400, 3)  # a Gram matrix is 7 passes
    settings: dict[str, Any] = {"l2": 1e-7, "tol": 1e-9, "solver": "adam"}
    probe = fit_probes(data.x, data.y, **settings, max_passes=20)["activations"]
    assert probe.status is Status.MAX_PASSES and 20 <= probe.passes < 24
    assert 0.2 <= probe.seconds < 20
