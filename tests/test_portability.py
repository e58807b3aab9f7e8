"""The rules of a GPU library, kept on a machine without one.

CuPy refuses implicit host copies (`np.asarray` of its arrays raises) and its operations refuse
NumPy arrays. array-api-strict enforces the same between its devices: an array on "device1" becomes
a NumPy array only on request, and meets only arrays of its own library and device. What passes here
asks for every transfer by name, in `convexprobe.arrays.backend`.
"""

from __future__ import annotations

from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

import convexprobe as cxp
from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.objective import Problem
from convexprobe.solvers import SOLVERS
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Status
from tests.oracle import minimum, random_data

DEVICE = strict.Device("device1")


def on_device(values: Any) -> Any:
    return strict.asarray(values, device=DEVICE)


def test_the_stand_in_has_the_rules_it_stands_for() -> None:
    x = on_device(np.eye(2))
    with pytest.raises(RuntimeError, match="NumPy array"):
        np.asarray(x)
    with pytest.raises(RuntimeError, match="NumPy array"):
        np.linalg.norm(x)
    with pytest.raises(ValueError, match="different devices"):
        x + strict.asarray(np.eye(2))
    with pytest.raises(TypeError, match="ndarray"):
        x + np.eye(2)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_solver_keeps_the_rules(solver: str, weighted: bool) -> None:
    data, path = random_data(150, 4, 3, weighted=weighted), [1e-2, 1.0]
    weights = None if data.weights is None else on_device(data.weights)
    rows = Rows(on_device(data.x))
    problem = Problem(rows, on_device(data.y), path, classes=3, weights=weights)
    found = solve(problem, SOLVERS[solver](), tol=1e-2, max_passes=200)
    assert found.w.device == DEVICE
    for t, l2 in enumerate(path):
        assert found.objective[t] - minimum(data, l2)[1] <= found.gap[t] < 0.1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", ["unpenalised", "wide", "float32"])
def test_the_rarer_branches_keep_the_rules(solver: str, case: str) -> None:
    data = random_data(*((12, 40, 3) if case == "wide" else (60, 3, 3)))
    x = data.x.astype(np.float32 if case == "float32" else np.float64)
    l2 = 0.0 if case == "unpenalised" else 1e-2
    problem = Problem(Rows(on_device(x)), on_device(data.y), l2, classes=3)
    found = solve(problem, SOLVERS[solver](), tol=1e-2, max_passes=30)
    assert found.w.device == DEVICE and np.isfinite(found.gap).all()


def test_fit_probes_keeps_the_rules_from_end_to_end() -> None:
    data, held = random_data(200, 5, 3), random_data(80, 5, 3, seed=1)
    x, x_held = on_device(data.x), on_device(held.x)
    first = cxp.fit_probes({"a": x}, on_device(data.y), sample_weight=on_device(np.ones(200)))
    again = cxp.fit_probes(
        {"a": x}, data.y, l2=first["a"].l2, validation=({"a": x_held}, held.y), warm_start=first
    )
    probe = again["a"]
    assert probe.status is Status.CERTIFIED
    assert probe.weights.device == probe.bias.device == DEVICE
    host = cxp.fit_probes(data.x, data.y, l2=probe.l2)["activations"]
    # Two certified answers of one problem: their values lie within a gap of each other.
    assert abs(probe.objective - host.objective) <= max(probe.gap, host.gap)
    assert again.evaluate({"a": x_held}, held.y)["a"].loss == pytest.approx(
        host.evaluate(held.x, held.y).loss, abs=0.05
    )
    predict_log_proba = probe.predict_log_proba(x_held)
    assert predict_log_proba.device == DEVICE and to_numpy(predict_log_proba).shape == (80, 3)
