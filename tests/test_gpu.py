"""Every solver where a GPU is: the answer of the CPU, on the device that the rows came from."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convexprobe as cxp
from convexprobe.activations.placement import place
from convexprobe.activations.source import Rows
from convexprobe.activations.stored import HostRows
from convexprobe.activations.stream import Stream
from convexprobe.arrays import fused, split_products
from convexprobe.arrays.backend import to_numpy
from convexprobe.arrays.products import combine_rows, dot_rows
from convexprobe.arrays.ranks import Communicator
from convexprobe.problem.objective import Problem
from convexprobe.problem.softmax import best_row_terms, row_terms
from convexprobe.solvers import SOLVERS, Solver
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Status
from tests.oracle import Data, minimum, random_data
from tests.storage import write_activations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

LIBRARIES = [
    "torch",
    pytest.param(
        "cupy",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("cupy") is None, reason="CuPy is not installed"
        ),
    ),
]


@pytest.fixture(params=LIBRARIES)
def on_device(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """What moves a NumPy array to the device, for each library."""
    if request.param == "torch":
        return lambda values: torch.as_tensor(values, device="cuda")
    import cupy

    return cupy.asarray


def test_the_kernels_of_an_evaluation_prove_themselves(
    on_device: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_trusted", {})
    monkeypatch.setattr(fused, "BOUGHT", 0.0)
    rng = np.random.default_rng(0)
    z = on_device(rng.standard_normal((2, 30, 5000)).astype(np.float32))
    labels = on_device(rng.integers(30, size=(1, 5000)))
    for _ in range(2):
        found = best_row_terms(z, labels)
        for a, b in zip(found, row_terms(z, labels), strict=True):
            np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=1e-5, atol=1e-5)
    if not isinstance(z, torch.Tensor) or fused._has_triton():
        assert list(fused._trusted.values()) == [True]


@pytest.mark.parametrize("dtype", list(split_products.WAYS))
def test_products_in_narrow_parts_are_accurate_or_not_used(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_products, "_chosen", {})
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 512, generator=g).to("cuda", dtype)
    for a, product, b in (
        (torch.randn(300, 512, generator=g).cuda(), dot_rows, x.T),
        (torch.randn(300, 20_000, generator=g).cuda(), combine_rows, x),
    ):
        exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
        plain = ((a @ b.float()).double() - exact).abs() / size
        found = (product(a, x).double() - exact).abs() / size
        assert found.max() <= 2 * split_products.WORSE * max(plain.max(), 2.0**-23)
    assert len(split_products._chosen) == 2
    assert not torch.backends.cuda.matmul.allow_tf32


def problem_on(
    move: Callable[[Any], Any], data: Data, l2: list[float], dtype: Any = np.float64
) -> Problem:
    weights = None if data.weights is None else move(data.weights)
    rows = Rows(move(data.x.astype(dtype)))
    return Problem(rows, move(data.y), l2, classes=data.k, weights=weights)


def kept_to_the_device(found: Any, problem: Problem) -> bool:
    matrix = problem.rows.reference
    return type(found) is type(matrix) and found.device == matrix.device


def as_it_comes(values: Any) -> Any:
    return values


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_first_steps_are_those_of_the_cpu(
    solver: str, weighted: bool, on_device: Callable[[Any], Any]
) -> None:
    data, path = random_data(600, 8, 3, weighted=weighted), [1e-3, 1.0]
    host = problem_on(as_it_comes, data, path)
    device = problem_on(on_device, data, path)
    chosen: Solver = SOLVERS[solver]()
    w_host, w_device = host.constant_classifier(), device.constant_classifier()
    state_host, state_device = chosen.init(host, w_host), chosen.init(device, w_device)
    for _ in range(2):
        w_host, state_host = chosen.step(host, w_host, state_host)
        w_device, state_device = chosen.step(device, w_device, state_device)
    assert kept_to_the_device(w_device, device)
    # Draws come from the seed alone; what differs is the order in which float64 sums are taken.
    np.testing.assert_allclose(to_numpy(w_device), w_host, rtol=1e-6, atol=1e-8)
    assert device.passes == pytest.approx(host.passes)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_certifies_on_the_device(
    solver: str, dtype: Any, on_device: Callable[[Any], Any]
) -> None:
    data = random_data(2000, 8, 3)
    data = Data(data.x.astype(np.float32).astype(np.float64), data.y, 3)
    path = [1e-2, 1.0]
    problem = problem_on(on_device, data, path, dtype)
    found = solve(problem, SOLVERS[solver](), tol=2e-2, max_passes=1000)
    assert found.status == (Status.CERTIFIED,) * 2, found.gap
    assert kept_to_the_device(found.w, problem)
    for t, l2 in enumerate(path):
        best = minimum(data, l2)[1]
        assert found.objective[t] - best <= found.gap[t]
        assert found.objective[t] - best >= -1e-6  # float32 rounds a value of order 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", SOLVERS)
def test_half_precision_rows_certify_on_the_device(solver: str, dtype: torch.dtype) -> None:
    data = random_data(2000, 8, 3)
    x = torch.tensor(data.x, dtype=dtype)
    stored = Data(x.double().numpy(), data.y, 3)
    problem = Problem(Rows(x.cuda()), torch.as_tensor(data.y).cuda(), [1e-2], classes=3)
    found = solve(problem, SOLVERS[solver](), tol=2e-2, max_passes=1000)
    assert found.status == (Status.CERTIFIED,)
    assert found.objective[0] - minimum(stored, 1e-2)[1] <= found.gap[0]


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_seed_gives_the_same_bits(solver: str, on_device: Callable[[Any], Any]) -> None:
    data = random_data(10_500, 8, 3)  # more rows than any solver takes whole into its sample

    def run() -> np.ndarray:
        problem = problem_on(on_device, data, [1e-3], np.float32)
        return to_numpy(solve(problem, SOLVERS[solver](), tol=1e-9, max_passes=12).w)

    np.testing.assert_array_equal(run(), run())


def test_probes_live_where_their_activations_do(on_device: Callable[[Any], Any]) -> None:
    data = random_data(500, 6, 3)
    x = on_device(data.x.astype(np.float32))
    probe = cxp.fit_probes({"a": x}, on_device(data.y), l2="auto")["a"]
    assert probe.status is Status.CERTIFIED
    assert type(probe.weights) is type(x) and probe.weights.device == x.device
    host = cxp.fit_probes(data.x.astype(np.float32), data.y, l2=probe.l2)["activations"]
    assert probe.evaluate(x, data.y).loss == pytest.approx(
        host.evaluate(data.x.astype(np.float32), data.y).loss, abs=0.02
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tier_gives_the_same_answer(dtype: torch.dtype, tmp_path: Path) -> None:
    data = random_data(60_000, 40, 3)
    x, y = torch.tensor(data.x).to(dtype), torch.tensor(data.y)
    write_activations(tmp_path, {"a": x}, y, rows=7000)
    stored = cxp.open_activations(tmp_path)[0]["a"]
    device, options = "cuda", {"l2": 1e-2, "tol": 1e-3}
    expected = cxp.fit_probes(x.cuda(), y, **options)["activations"]
    size = x.nbytes
    assert isinstance(place(stored, device, size), Rows)
    assert isinstance(place(x, device, size - 1), Stream)
    for rows, limit in [(stored, size), (x, size), (x, size - 1), (stored, 1)]:
        probe = cxp.fit_probes({"a": rows}, y, device=device, memory_limit=limit, **options)["a"]
        assert probe.weights.device.type == "cuda"
        torch.testing.assert_close(probe.weights, expected.weights, atol=1e-5, rtol=1e-4)
        assert probe.passes == pytest.approx(expected.passes, rel=0.1)


def test_blocks_arrive_whole_while_others_are_multiplied() -> None:
    x = torch.randn(300_000, 64).pin_memory()
    stream = Stream(HostRows(x), "cuda", 1e9)
    busy = torch.randn(4000, 4000, device="cuda")
    for span, block in stream.blocks():
        for _ in range(20):  # the next copy runs beside this
            busy = busy @ busy / 4000
        assert torch.equal(block.cpu(), x[span])


def test_a_full_device_gets_smaller_blocks() -> None:
    x = torch.randn(400_000, 256)
    y = torch.arange(len(x)) % 3
    expected = cxp.fit_probes({"a": x}, y, l2=1e-1, device="cuda")["a"]
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:  # logits fit, a block of 256 MB and its companions do not
        torch.cuda.set_per_process_memory_fraction(250e6 / total)
        found = cxp.fit_probes({"a": x}, y, l2=1e-1, device="cuda", memory_limit=1e6)["a"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(found.weights, expected.weights, atol=1e-5, rtol=1e-4)


def test_sums_by_nccl_are_those_of_one_process(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        data = random_data(300, 5, 3)
        for x in (data.x, torch.tensor(data.x).cuda()):
            ours = cxp.fit_probes(x, data.y, l2=0.1, process_group="world")["activations"]
            alone = cxp.fit_probes(x, data.y, l2=0.1)["activations"]
            np.testing.assert_allclose(to_numpy(ours.weights), to_numpy(alone.weights), atol=1e-6)
        ranks = Communicator.of("world")
        for size in (0, 1, 62, 63, 1000):
            assert ranks.all_reduce(np.arange(size))[0].tolist() == list(range(size))
        with pytest.raises(OSError, match="rank 0: gone"), ranks.raise_together():
            raise OSError("gone")
    finally:
        torch.distributed.destroy_process_group()
