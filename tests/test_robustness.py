"""Hostile problems: no solver fails, loops, returns NaN or claims more than is true.

The gap of every solver is held against the best point that anybody found, in float64: the point of
any solver, and of a Newton iteration that shares nothing with the package. All are upper bounds on
`F*`, so none of them can pass a false gap by not having converged; they can only be too lenient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import to_numpy
from convexprobe.probes.fit import fit_probes
from convexprobe.problem.objective import Problem
from convexprobe.solvers import SOLVERS
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Solution, Status
from tests.oracle import Data, dense_hessian, random_data, reference

TOL = 1e-6

BUDGET = 50.0
STEP = 150.0
"""Passes one step may take at most: 100 inner products, 12 trials, sample and table around them."""

MULTIPLE = 16.0
"""How far a value may be from the truth, in units of the compute dtype's spacing times the size of
the terms that logits are summed from: the library states an estimate, rounding errors a bound."""

PENALTIES = [1e-3, 0.0, 1e-12, 1e-6, 1.0, 1e3]

DTYPES = ["float64", "float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Case:
    """A problem by what is hostile in it; powers are of ten."""

    n: int
    d: int
    k: int = 2
    labels: str = "random"
    condition: int = 0
    scale: int = 0
    spread: int = 0
    oddities: frozenset[str] = frozenset()
    weights: bool = False
    l2: tuple[float, ...] = (1e-3,)
    dtype: str = "float64"
    seed: int = 0

    def rows(self) -> Any:
        """The activations in the dtype they are stored in; as many as a class a row needs."""
        rng = np.random.default_rng(self.seed)
        x = rng.standard_normal((self.n, self.d))
        if self.condition:
            u, _, v = np.linalg.svd(x, full_matrices=False)
            x = (u * np.logspace(0, -self.condition, u.shape[1])) @ v
        if "constant" in self.oddities:
            x[:, 0] = 5.0
        if "zero" in self.oddities:
            x[:, -1] = 0.0
        if "offset" in self.oddities:
            x += 1e3
        if "duplicates" in self.oddities:
            x[self.n // 2 :] = x[: self.n - self.n // 2]
        x = x * 10.0 ** np.clip(self.scale + self.spread * rng.uniform(-1, 1, self.d), -20, 20)
        if self.dtype == "float16":
            top = np.abs(x).max() if "overflow" in self.oddities else 6e4
            x = np.clip(x * (6e4 / top if top > 0 else 1.0), -6e4, 6e4)
        if self.dtype == "bfloat16":
            return torch.tensor(x, dtype=torch.bfloat16)
        return x.astype(self.dtype)

    def data(self) -> Data:
        """The stored activations exactly, with labels and weights."""
        x, rng = to_numpy(self.rows()).astype(np.float64), np.random.default_rng(self.seed + 1)
        if self.labels == "one row a class":
            y, k = rng.permutation(self.n), self.n
        elif self.labels == "all but one":
            y, k = (np.arange(self.n) == 0).astype(np.int64), self.k
        else:
            y, k = rng.integers(0, self.k, self.n), self.k
            y[:2] = [0, 1]
        weights = None
        if self.weights:
            weights = 10.0 ** rng.uniform(-6, 6, self.n) * (rng.random(self.n) > 0.2)
            weights[:2] = np.maximum(weights[:2], 1e-6)
        return Data(x, y, k, weights)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Every hostility on its own and with the others."""
    wide = draw(st.booleans())
    labels = draw(st.sampled_from(["random", "all but one", "one row a class"]))
    # Newton's matrix has (k (d + 1))^2 numbers: 400^2, where 50 classes of 60 features have 3 050^2
    few = wide and labels == "one row a class"
    rows = st.integers(2, 6) if few else st.one_of(st.integers(2, 24), st.integers(40, 50))
    return Case(
        n=draw(rows),
        d=draw(st.integers(30, 60)) if wide else draw(st.integers(1, 6)),
        k=draw(st.integers(2, 6)),
        labels=labels,
        condition=draw(st.sampled_from([0, 3, 6, 12])),
        scale=draw(st.sampled_from([0, -20, -10, -3, 3, 10, 20])),
        spread=draw(st.sampled_from([0, 3, 10, 20])),
        oddities=draw(
            st.frozensets(st.sampled_from(["constant", "zero", "offset", "duplicates", "overflow"]))
        ),
        weights=draw(st.booleans()),
        l2=tuple(draw(st.lists(st.sampled_from(PENALTIES), min_size=1, max_size=3))),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 99)),
    )


@np.errstate(over="ignore", invalid="ignore")  # a step too long is refused by its value
def best_newton(data: Data, l2: float) -> float:
    """The lowest value that damped Newton meets, its Hessian scaled to a unit diagonal."""
    w = np.zeros(data.k * (data.x.shape[1] + 1))
    value, gradient, p = reference(data, w, l2)
    for _ in range(40):
        hessian = dense_hessian(data, p, l2)
        unit = np.sqrt(np.diag(hessian)) + 1e-150
        scaled = hessian / unit[:, None] / unit[None, :] + 1e-13 * np.eye(len(w))
        try:
            step = np.linalg.solve(scaled, gradient / unit) / unit
        except np.linalg.LinAlgError:  # any point will do: that at hand
            break
        for t in 0.5 ** np.arange(30):
            new = reference(data, w - t * step, l2)
            if new[0] < value:
                break
        if not new[0] < value:
            break
        done = value - new[0] < 1e-14 * abs(value)
        w = w - t * step
        value, gradient, p = new
        if done:
            break
    return value


def spacing(data: Data, w: np.ndarray, value: float, dtype: Any) -> float:
    """The dtype's spacing times the mean size of what a row's logits are summed from."""
    cut = data.k * data.x.shape[1]
    weights, bias = np.abs(w[:cut]).reshape(data.k, -1), np.abs(w[cut:])
    size = (np.abs(data.x) @ weights.T + bias).max(axis=1)
    s = np.ones(len(size)) if data.weights is None else data.weights
    return float(np.finfo(dtype).eps * (np.sum(s * size) / s.sum() + abs(value)))


@contextmanager
def limited(passes: float) -> Iterator[None]:
    """Fail as soon as any problem has spent more: what ends an endless loop."""
    count_rows = Problem.count_rows

    def guarded(self: Problem, rows: float) -> None:
        count_rows(self, rows)
        assert self.passes <= passes, "a step does not end"

    with patch.object(Problem, "count_rows", guarded):
        yield


def run(case: Case, solver: str) -> tuple[Problem, Solution]:
    """Solve within the budget, or fail."""
    data, rows = case.data(), Rows(case.rows())
    as_rows = torch.as_tensor if case.dtype == "bfloat16" else np.asarray
    weights = None if data.weights is None else as_rows(data.weights)
    problem = Problem(rows, as_rows(data.y), case.l2, classes=data.k, weights=weights)
    with limited(BUDGET + STEP):
        return problem, solve(problem, SOLVERS[solver](), tol=TOL, max_passes=BUDGET)


def check(case: Case) -> None:
    """What no solver may break, on one family of problems."""
    data = case.data()
    small = data.k * (data.x.shape[1] + 1) <= 100
    best = [best_newton(data, l2) if small else np.inf for l2 in case.l2]
    compute = np.float64 if case.dtype == "float64" else np.float32
    claims = []
    for name in SOLVERS:
        problem, found = run(case, name)
        points = to_numpy(found.w)
        for part in (points, found.objective, found.loss, found.gap):
            assert np.isfinite(part).all(), name
        setup = 0.5  # passes before the solve, whose budget it is
        assert all(r.passes < BUDGET + setup for r in found.history[:-1]), name
        for t, l2 in enumerate(case.l2):
            w = points[t]
            value = reference(data, w, l2)[0]
            noise = spacing(data, w, value, compute)
            assert abs(found.objective[t] - value) <= MULTIPLE * noise, name
            if found.status[t] is Status.CERTIFIED:
                assert found.gap[t] <= TOL * problem.label_entropy[t], name
            claims.append((name, t, value, found.gap[t] + MULTIPLE * noise))
            best[t] = min(best[t], value + spacing(data, w, value, np.float64))
    for name, t, value, claim in claims:
        assert value - best[t] <= claim, (name, case.l2[t], value - best[t], claim)


NAMED = {
    "condition 1e12": Case(40, 6, 3, condition=12, l2=(1e-6,)),
    "scale 1e-20": Case(40, 4, 3, scale=-20, l2=(1e-12,)),
    "scale 1e20": Case(40, 4, 3, scale=20),
    "scale 1e20 in float32": Case(40, 4, 3, scale=20, dtype="float32"),
    "scales 1e-20 to 1e20": Case(40, 6, 3, spread=20),
    "scales 1e-20 to 1e20 in float32": Case(40, 6, 3, spread=20, dtype="float32"),
    "all labels equal but one": Case(50, 4, labels="all but one", l2=(1e-6,)),
    "two rows": Case(2, 3, l2=(1e-6,)),
    "two rows without penalty": Case(2, 1, 3, l2=(0.0,)),
    "two rows of bfloat16 without penalty": Case(2, 1, 3, l2=(0.0,), dtype="bfloat16"),
    "one row a class": Case(50, 5, labels="one row a class"),
    "wide": Case(10, 60, 3),
    "duplicated rows": Case(30, 4, 3, oddities=frozenset({"duplicates"}), l2=(0.0,)),
    "constant and zero features": Case(
        30, 4, 3, oddities=frozenset({"constant", "zero"}), l2=(0.0,)
    ),
    "far from the origin": Case(30, 4, 3, oddities=frozenset({"offset"}), dtype="float32"),
    "float16 near overflow": Case(30, 4, 3, oddities=frozenset({"overflow"}), dtype="float16"),
    "float16 clipped": Case(30, 4, 3, scale=20, dtype="float16", l2=(1e-12,)),
    "bfloat16": Case(30, 4, 3, spread=3, dtype="bfloat16"),
    "weights 1e-6 to 1e6": Case(40, 4, 3, weights=True, l2=(1e-6,)),
    "l2 of 1e3": Case(30, 4, 3, l2=(1e3,)),
    "separable without penalty": Case(10, 60, 3, l2=(0.0,), scale=-20, dtype="float32"),
}
"""One hostility each, in the words of whoever meets it."""


@pytest.mark.parametrize("name", NAMED)
def test_a_hostile_problem_breaks_nothing(name: str) -> None:
    check(NAMED[name])


@given(case=cases())
@settings(max_examples=30)
def test_nothing_breaks_and_no_gap_is_false(case: Case) -> None:
    check(case)


@given(case=cases())
@settings(max_examples=25)
def test_fit_probes_answers_or_refuses_at_the_door(case: Case) -> None:
    data = case.data()
    classes, weights = range(data.k), data.weights
    try:
        probe = fit_probes(
            case.rows(),
            data.y,
            l2=case.l2[0],
            classes=classes,
            sample_weight=weights,
            max_passes=BUDGET,
        )["activations"]
    except ValueError as error:
        assert "divide all rows by a constant" in str(error)
        assert np.abs(data.x).max() > 1e17 and case.dtype != "float64"
        return
    assert np.isfinite([probe.gap, probe.loss, probe.objective]).all()
    assert np.isfinite(to_numpy(probe.weights)).all()


def test_sums_that_overflow_are_refused_at_the_door() -> None:
    x = np.full((20, 2), 3e38, dtype=np.float32)
    with pytest.raises(ValueError, match=r"1.8e.17 in size, found 3.* row 0.*; divide all"):
        fit_probes(x, np.arange(20) % 2, l2=1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("xp", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_seed_gives_the_same_bits(name: str, xp: ModuleType, dtype: Any) -> None:
    data = random_data(10_500, 3, 3)  # more rows than any solver takes whole into its sample

    def run(**seed: int) -> Solution:
        problem = data.problem([1e-4, 1e-2], xp, dtype)
        return solve(problem, replace(SOLVERS[name](), **seed), tol=1e-9, max_passes=12)

    first, again = run(), run()
    np.testing.assert_array_equal(to_numpy(again.w), to_numpy(first.w))
    np.testing.assert_array_equal(again.gap, first.gap)
    assert [(r.passes, r.objective.tolist()) for r in again.history] == [
        (r.passes, r.objective.tolist()) for r in first.history
    ]
    if any(f.name == "seed" for f in fields(SOLVERS[name])):  # else nothing of its own is drawn
        assert (to_numpy(run(seed=1).w) != to_numpy(first.w)).any()  # so the seed does decide
