"""A family that keeps no logits of all its rows: its line search, its solvers and its memory."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import convexprobe as cxp
from convexprobe.activations.placement import logit_room, place
from convexprobe.activations.source import Rows
from convexprobe.activations.stored import HostRows
from convexprobe.activations.stream import Stream
from convexprobe.activations.widened import Widened
from convexprobe.arrays.backend import to_numpy
from convexprobe.probes.standardize import Standardized
from convexprobe.problem import kept_logits
from convexprobe.problem.kept_logits import LOGITS, MANY, MOST_LOGITS, kept_columns
from convexprobe.problem.objective import Problem
from convexprobe.solvers import SOLVERS
from convexprobe.solvers.base import inner
from convexprobe.solvers.line_search import line_search
from convexprobe.solvers.loop import solve
from tests.oracle import Data, minimum, random_data
from tests.storage import write_activations

module = import_module("convexprobe.solvers.line_search")  # the package exports its function


@pytest.fixture(autouse=True)
def none_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Families here keep no logits, however few."""
    monkeypatch.setattr(kept_logits, "LEAST", 0)


def lean(data: Data, l2: object, library: ModuleType = np, dtype: type = np.float64) -> Problem:
    weights = None if data.weights is None else library.asarray(data.weights)
    rows = Rows(library.asarray(data.x.astype(dtype)))
    rows.room = 0.0
    return Problem(rows, library.asarray(data.y), l2, classes=data.k, weights=weights)


def point(problem: Problem, seed: int = 0) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).standard_normal((problem.m, problem.p))


@pytest.mark.parametrize("rows", [40, 8192])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_step_lowers_every_task_and_leaves_little_slope(
    rows: int, scale: float, library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    problem = lean(random_data(300, 4, 3, weighted=True), [1e-3, 1.0], library)
    at = problem.evaluate(library.asarray(point(problem)), keep=True)
    assert at.logits is None and not problem.keeps_logits
    new, t = line_search(problem, at, scale * at.gradient)
    assert new.logits is None and (to_numpy(t) > 0).all()
    assert (to_numpy(new.value) < to_numpy(at.value)).all()
    slope, before = (to_numpy(inner(e.gradient, at.gradient)) for e in (new, at))
    assert (np.abs(slope) <= 0.2 * np.abs(before)).all()
    again = problem.evaluate(new.w)
    np.testing.assert_array_equal(to_numpy(again.value), to_numpy(new.value))


def test_a_sample_of_all_rows_finds_the_step_in_one_pass_beside_its_own() -> None:
    problem = lean(random_data(300, 4, 3), 1e-2)
    at = problem.evaluate(point(problem))
    before = problem.passes
    line_search(problem, at, at.gradient)
    assert problem.passes - before == 2.0  # the sample is all rows here


def test_few_of_many_rows_find_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 200)
    monkeypatch.setattr(module, "CANDIDATES", 1000)
    problem = lean(random_data(20_000, 6, 4), 1e-2)
    at = problem.evaluate(point(problem))
    before = problem.passes
    for _ in range(5):
        at, _ = line_search(problem, at, at.gradient)
    assert problem.passes - before < 5.2


@pytest.mark.parametrize("factor", [-1.0, 1e39, np.inf, np.nan])
def test_a_task_without_a_usable_direction_stays(factor: float) -> None:
    problem = lean(random_data(60, 4, 3), [1e-3, 1e-3], dtype=np.float32)
    at = problem.evaluate(point(problem))
    with np.errstate(all="ignore"):
        new, t = line_search(problem, at, at.gradient * np.array([[1.0], [factor]]))
    assert t[0] > 0 and new.value[0] < at.value[0]
    assert t[1] == 0
    np.testing.assert_array_equal(new.w[1], at.w[1])
    np.testing.assert_allclose(new.value[1], at.value[1], rtol=1e-7)


def test_rows_that_weigh_nothing_may_be_all_that_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CANDIDATES", 100)
    data = random_data(200, 4, 3)
    problem = lean(replace(data, weights=(np.arange(200) % 2).astype(float)), 1e-2)
    at = problem.evaluate(point(problem))
    new, _ = line_search(problem, at, at.gradient)
    assert new.value[0] < at.value[0]


@pytest.mark.parametrize("solver", ["auto", "newton-cg", "newton-cholesky", "lbfgs", "svrg"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_solvers_certify_without_logits_and_the_gap_holds(
    solver: str, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 150)
    data, path = random_data(600, 5, 3, weighted=True), [1e-3, 1e-1]
    stored = replace(data, x=data.x.astype(dtype).astype(np.float64))
    solution = solve(lean(stored, path, dtype=dtype), SOLVERS[solver](), tol=1e-4)
    assert [s.name for s in solution.status] == ["CERTIFIED"] * 2
    for i, l2 in enumerate(path):
        best = minimum(stored, l2)[1]
        assert best - 1e-6 <= solution.objective[i] <= best + solution.gap[i] + 1e-9


def test_logits_are_kept_where_they_have_room() -> None:
    def kept(n: int, every: int, item: int, room: float) -> int:
        return kept_columns(n, every, item, room, streamed=False)

    assert kept(1000, 1000, 4, 8e6 + 7) == 1000
    assert kept(MANY, MANY, 4, np.inf) == LOGITS // (8 * MANY)
    assert kept(MANY - 1, MANY - 1, 8, np.inf) == MOST_LOGITS // (16 * (MANY - 1))
    assert kept(1, MANY, 4, np.inf) == LOGITS // 8  # of many rows, one is here
    assert kept(0, 0, 4, 80.0) == 10
    problem = random_data(50, 4, 3).problem([1.0, 1.0])
    problem.kept_columns = 3
    assert not problem.keeps_logits and problem.take_tasks([0]).keeps_logits


def test_many_rows_that_are_streamed_keep_no_logits() -> None:
    assert kept_columns(MANY, MANY, 4, np.inf, streamed=True) == 0
    assert kept_columns(1, MANY, 4, np.inf, streamed=True) == 0  # the others are elsewhere
    assert kept_columns(100, MANY - 1, 4, 8e3, streamed=True) == 10
    x, y = torch.zeros(MANY, 1), torch.arange(MANY) % 2
    stream = Stream(HostRows(x), "cpu", 1e9)
    assert not Problem(stream, y, [1.0], classes=2).keeps_logits
    assert Problem(Rows(x), y, [1.0], classes=2).keeps_logits
    for source in (Widened(stream), Standardized(stream, np.zeros(1), np.ones(1))):
        assert source.streamed and source.subset(np.arange(2)).streamed


def test_rows_and_logits_share_the_limit(tmp_path: Path) -> None:
    x = torch.ones(100, 10)
    write_activations(tmp_path, {"a": x}, torch.arange(100) % 2)
    stored = cxp.open_activations(tmp_path)[0]["a"]
    assert place(x, None, None).room == np.inf
    assert place(x, None, 5000.0).room == place(stored, None, 5000.0).room == 1000.0
    assert place(x, None, 3000.0).room == 0.0  # here already
    assert place(x, "cpu", 5000.0).room == 1000.0
    streamed = place(stored, None, 1000.0)
    assert streamed.room == logit_room("disk", 4000, 1000.0) == pytest.approx(600.0)
    assert Widened(streamed).room == streamed.room


@pytest.mark.parametrize("options", [{"l2": 1e-2}, {"l2": [1e-3, 1e-1]}, {"standardize": True}],
                         ids=str)  # fmt: skip
def test_a_limit_below_the_logits_gives_a_certified_probe(options: dict[str, object]) -> None:
    data = random_data(800, 6, 4)
    x = torch.tensor(data.x).float()
    free = cxp.fit_probes(x, data.y, tol=1e-4, **options)["activations"]  # type: ignore[arg-type]
    bound = cxp.fit_probes(x, data.y, tol=1e-4, memory_limit=1.0, **options)["activations"]  # type: ignore[arg-type]
    assert bound.status.name == free.status.name == "CERTIFIED"
    assert bound.objective == pytest.approx(free.objective, abs=bound.gap + free.gap)
