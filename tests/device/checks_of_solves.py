"""Every solver on the device: the bits of the CPU where both do the same, else its optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from convexprobe.activations.source import Rows
from convexprobe.activations.stored import HostRows
from convexprobe.activations.stream import Stream
from convexprobe.arrays.backend import generator, to_numpy, uniform
from convexprobe.arrays.linalg import cholesky, eigh, inverse_spd, solve
from convexprobe.problem.objective import Problem
from convexprobe.problem.preconditioners import Curvature
from convexprobe.problem.row_sample import Sample, draw_rows
from convexprobe.solvers import LBFGS, SOLVERS
from convexprobe.solvers.loop import solve as run
from tests.device.simulated import NAME, DeviceTensor, register
from tests.oracle import Data, minimum, random_data

register()


def problem_on(device: str, data: Data, l2: Any, dtype: torch.dtype, **settings: Any) -> Problem:
    x = torch.tensor(data.x, dtype=dtype, device=device)
    weights = None if data.weights is None else torch.tensor(data.weights, device=device)
    y = torch.tensor(data.y, device=device)
    return Problem(Rows(x), y, l2, classes=data.k, weights=weights, **settings)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_make_the_bits_of_the_cpu(name: str, weighted: bool) -> None:
    data, path = random_data(150, 6, 3, weighted=weighted), [1e-3, 1.0]
    # of few rows all are drawn, but for the cheapest metrics of L-BFGS, which take 128
    solver = LBFGS(Curvature()) if name == "lbfgs" else SOLVERS[name]()
    ours, theirs = (
        run(problem_on(where, data, path, torch.float64), solver, tol=1e-3, max_steps=2)
        for where in (NAME, "cpu")
    )
    assert type(ours.w) is DeviceTensor
    assert torch.equal(ours.w.cpu(), theirs.w)
    assert ours.status == theirs.status
    np.testing.assert_array_equal(ours.gap, theirs.gap)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["newton-cg", "lbfgs"])
@pytest.mark.parametrize("case", ["many rows", "wide", "no bias", "two classes"])
def test_solvers_certify_what_is_the_optimum(name: str, case: str, dtype: torch.dtype) -> None:
    k = 2 if case == "two classes" else 3
    data = random_data(*((30, 90, k) if case == "wide" else (11_000, 4, k)))  # drawn on the device
    data = Data(torch.tensor(data.x, dtype=dtype).double().numpy(), data.y, k)
    bias = case != "no bias"
    problem = problem_on(NAME, data, [1e-2], dtype, bias=bias)
    found = run(problem, SOLVERS[name](), tol=1e-3, max_passes=300)
    assert found.gap[0] <= 1e-3 * data.label_entropy
    if bias:
        best = minimum(data, 1e-2)[1]
        assert -1e-6 <= found.objective[0] - best <= found.gap[0]


def test_streamed_rows_make_the_bits_of_rows_on_the_device() -> None:
    data = random_data(12_000, 5, 3)
    x, y = torch.tensor(data.x).to(torch.bfloat16), torch.tensor(data.y)
    found = []
    for rows in (Rows(x.to(NAME)), Stream(HostRows(x), NAME, 1e9, chunk=1 << 15)):
        problem = Problem(rows, y.to(NAME), [1e-3], classes=3)
        found.append(run(problem, SOLVERS["newton-cg"](), tol=1e-4).w.cpu())
    assert torch.equal(*found)


def test_random_numbers_are_those_of_splitmix64() -> None:
    def mixed(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    key = 0x3141592653589793
    expected = [
        (mixed((key + i * 0x9E3779B97F4A7C15) % 2**64) >> 11) * 2.0**-53 for i in range(1, 50)
    ]
    for place in ("cpu", NAME):
        found = uniform(key, slice(0, 49), torch.empty(0, device=place))
        assert to_numpy(found).tolist() == expected
        part = uniform(key, slice(20, 30), torch.empty(0, device=place))
        assert to_numpy(part).tolist() == expected[20:30]
    assert uniform(key, slice(0, 49), np.empty(0)).tolist() == expected


def test_rows_are_drawn_where_the_curvature_is_and_sums_are_unbiased() -> None:
    data = random_data(2000, 4, 3, weighted=True)
    host = problem_on("cpu", data, [1e-2], torch.float64)
    problem = problem_on(NAME, data, [1e-2], torch.float64)
    w = torch.randn(1, problem.p, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at, there = problem.evaluate(w.to(NAME), keep=True), host.evaluate(w, keep=True)
    expected = None
    for place, family, point in (("cpu", host, there), (NAME, problem, at)):
        chances = np.full(2000, np.nan)
        sizes = []
        for i in range(20):
            sample = Sample.draw(family, point, 300, generator(i))
            index = to_numpy(sample.index)
            assert (np.diff(index) > 0).all() and len(index) == sample.rows
            chances[index] = 1.0 / to_numpy(sample.inverse_probability)
            sizes.append(len(index))
            assert sample.x.device.type == torch.device(place).type
        assert np.mean(sizes) == pytest.approx(300, rel=0.05)
        if expected is not None:
            seen = ~np.isnan(chances) & ~np.isnan(expected)
            np.testing.assert_allclose(chances[seen], expected[seen], rtol=1e-12)
        expected = chances


def test_a_draw_of_all_rows_has_them_in_order() -> None:
    uncertainty = torch.rand(2, 50).to(NAME)
    problem = problem_on(NAME, random_data(50, 3, 2), [1.0], torch.float64)
    index, inverse = draw_rows(uncertainty, None, 50, generator(0), problem.communicator)
    assert index.tolist() == [*range(50)] and set(inverse.tolist()) == {1.0}


def test_linear_algebra_fails_as_on_the_cpu() -> None:
    indefinite = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    singular = torch.zeros(2, 2, dtype=torch.float64)
    overflowed = torch.full((2, 2), torch.inf, dtype=torch.float64)
    b = torch.ones(2, 1, dtype=torch.float64)
    assert cholesky(indefinite.to(NAME)) is None
    assert torch.equal(inverse_spd(indefinite.to(NAME)).cpu(), inverse_spd(indefinite))
    assert inverse_spd(indefinite.to(NAME), wait=False).cpu().isnan().all()
    assert not solve(singular.to(NAME), b.to(NAME)).cpu().isfinite().all()
    for matrix in (indefinite, overflowed):
        for ours, theirs in zip(eigh(matrix.to(NAME)), eigh(matrix), strict=True):
            assert torch.equal(ours.cpu(), theirs)
