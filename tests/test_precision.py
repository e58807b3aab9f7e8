"""The precision contract of docs/precision.md: types at rest, in products, in sums; the floor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import convexprobe as cxp
from convexprobe.activations.placement import place
from convexprobe.activations.source import Rows, Source
from convexprobe.problem.objective import Problem
from convexprobe.solvers import LBFGS, solve
from convexprobe.solvers.solution import Status
from tests.oracle import Data, minimum, random_data, reference
from tests.storage import write_activations

STORED = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
HALF = [torch.float16, torch.bfloat16]


def source(data: Data, dtype: torch.dtype, disk: Path | None) -> tuple[Source, Data]:
    """The rows in that type, in memory or streamed, and the problem that they pose."""
    x = torch.tensor(data.x).to(dtype)
    rows: Source = Rows(x)
    if disk is not None:
        write_activations(disk, {"a": x}, torch.tensor(data.y))
        rows = place(cxp.open_activations(disk)[0]["a"], None, 1.0)
    return rows, Data(x.double().numpy(), data.y, data.k)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dtype", STORED)
def test_types_at_rest_in_products_and_in_sums(
    dtype: torch.dtype, streamed: bool, tmp_path: Path
) -> None:
    data = random_data(400, 5, 3)
    rows, _ = source(data, dtype, tmp_path if streamed else None)
    products = torch.float64 if dtype == torch.float64 else torch.float32
    assert rows.reference.dtype == dtype
    assert {x.dtype for _, x in rows.blocks()} == {products} == {rows.take(np.arange(9)).dtype}
    problem = Problem(rows, torch.tensor(data.y), [0.1], classes=3)
    at = problem.evaluate(problem.constant_classifier() + 0.1, keep=True)
    assert at.logits.dtype == products
    sums = (at.value, at.loss, at.gradient, at.entropy, at.rounding, problem.moment)
    assert {part.dtype for part in sums} == {torch.float64}
    assert (float(at.rounding[0]) < 1e-14) == (dtype == torch.float64)


@pytest.mark.parametrize("dtype", STORED)
def test_the_problem_solved_is_that_of_the_stored_rows(dtype: torch.dtype, tmp_path: Path) -> None:
    data = random_data(800, 6, 3)
    rows, stored = source(data, dtype, tmp_path)
    probe = cxp.fit_probes({"a": rows.store}, data.y, l2=1e-2, tol=1e-4, memory_limit=1)["a"]  # type: ignore[attr-defined]
    assert probe.status is Status.CERTIFIED
    optimum = minimum(stored, 1e-2)[1]
    w = np.concatenate([probe.weights.double().numpy().ravel(), probe.bias.double().numpy()])
    exact = reference(stored, w, 1e-2)[0]  # of the weights as they are handed out
    assert -1e-12 <= exact - optimum <= probe.gap
    assert exact == pytest.approx(probe.objective, abs=1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_what_float32_cannot_certify_is_finished_in_float64(dtype: torch.dtype) -> None:
    data = random_data(800, 6, 3)
    rows = torch.tensor(data.x).to(dtype)
    stored = Data(rows.double().numpy(), data.y, 3)
    goal = 1e-9 * data.label_entropy
    problem = Problem(Rows(rows), torch.tensor(data.y), [1e-2], classes=3)
    alone = solve(problem, LBFGS(), tol=1e-9)
    assert alone.status == (Status.ROUNDING,) and goal < alone.gap[0] < 1e-4
    probe = cxp.fit_probes(rows, data.y, "lbfgs", l2=1e-2, tol=1e-9)["activations"]
    assert probe.status is Status.CERTIFIED and probe.gap <= goal
    assert probe.weights.dtype == torch.float32  # and it is their objective that is certified
    w = np.concatenate([probe.weights.double().numpy().ravel(), probe.bias.double().numpy()])
    exact = reference(stored, w, 1e-2)[0]
    assert exact == pytest.approx(probe.objective, abs=1e-12)
    assert exact - minimum(stored, 1e-2)[1] <= probe.gap + 1e-13


def test_sums_over_rows_do_not_lose_the_small_ones() -> None:
    # one row with a loss of 1e7 first: in float32 a sum of that size moves in steps of 1
    n = 1_000_000
    x = torch.full((n, 1), 1.0)
    x[0] = -1e8
    labels = torch.zeros(n, dtype=torch.int64)
    labels[1] = 1  # two classes
    w = np.array([0.125, 0.0, 0.0, 0.0])
    problem = Problem(Rows(x), labels, [0.0], classes=2)
    small, exact = np.logaddexp(0, -0.125), 1.25e7  # and the row of class 1 has 0.125 more
    total = exact + (n - 1) * small + 0.125
    found = float(problem.evaluate(torch.tensor(w[None, :])).loss[0])
    assert found * n - total == pytest.approx(0, abs=0.1)
