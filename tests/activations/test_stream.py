"""Rows that are read in blocks give the answer of rows in memory, and need a part of it."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import convexprobe as cxp
from convexprobe.activations.placement import (
    Neighbours,
    choose_tier,
    free_memory,
    identity,
    place,
)
from convexprobe.activations.source import Rows
from convexprobe.activations.stored import HostRows
from convexprobe.activations.stream import LEAST, Stream
from convexprobe.problem.objective import Problem
from convexprobe.solvers import SOLVERS
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Status
from tests.claims import untimed
from tests.oracle import random_data
from tests.storage import Exhausted, write_activations


@pytest.fixture(params=["disk", "host"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """What makes a store of a tensor."""

    def store(x: Tensor) -> Any:
        if request.param == "host":
            return HostRows(x)
        write_activations(tmp_path, {"a": x}, torch.zeros(len(x)))
        return cxp.open_activations(tmp_path)[0]["a"]

    return store


SMALL: dict[str, Any] = {"chunk": 6000, "most_rows": 64}
"""Several chunks even of a small matrix, each of several blocks."""


def matrix(n: int, d: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    data = random_data(n, d, 3, seed)
    return torch.tensor(data.x).to(dtype), torch.tensor(data.y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_blocks_and_gathered_rows_are_those_of_memory(stored: Any, dtype: torch.dtype) -> None:
    x, _ = matrix(1001, 7, dtype)
    memory, stream = Rows(x, 64), Stream(stored(x), "cpu", 0, **SMALL)
    assert (stream.n, stream.d) == (1001, 7)
    for _ in range(2):  # the second pass is given the buffers of the first
        pairs = zip(memory.blocks(), stream.blocks(), strict=True)
        for (span, block), (found_span, found) in pairs:
            assert span == found_span and block.dtype == found.dtype
            assert torch.equal(block, found)
    index = np.random.default_rng(0).integers(0, 1001, 300)
    for chosen in (index, np.arange(1001), np.arange(0, 1001, 40), np.array([5])):
        assert torch.equal(stream.take(chosen), memory.take(chosen))
    part, expected = stream.subset(index), memory.subset(index)
    assert torch.equal(torch.cat([b.clone() for _, b in part.blocks()]), expected.matrix)
    assert torch.equal(part.take(np.array([3, 1])), expected.take(np.array([3, 1])))
    assert torch.equal(part.subset(np.array([7])).take(np.array([0])), expected.matrix[7:8])


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_gives_the_answer_of_memory(solver: str, tmp_path: Path) -> None:
    x, y = matrix(1500, 6, torch.float32)
    write_activations(tmp_path, {"a": x}, y)
    stream = Stream(cxp.open_activations(tmp_path)[0]["a"], "cpu", 1e9, **SMALL)
    found = []
    for rows in (Rows(x, 64), stream):  # the same blocks, so the same sums to the last bit
        problem = Problem(rows, y, [1e-2, 1.0], classes=3)
        found.append(solve(problem, SOLVERS[solver](), tol=2e-2, max_passes=300))
    memory, streamed = found
    assert set(memory.status) == {Status.CERTIFIED}
    assert torch.equal(streamed.w, memory.w) and streamed.passes.tolist() == memory.passes.tolist()
    for name in ("loss", "objective", "gap"):
        assert getattr(streamed, name).tolist() == getattr(memory, name).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"cv": 3, "l2": [1e-2, 1.0]},
        {"l2": "auto", "sample_weight": np.linspace(0, 1, 900)},
        {"l2": 1e-2, "stopping": "validation"},
        {"l2": [1e-2, 1.0], "cv": 2, "classes": [0, 1, 2, 3]},
    ],
)
def test_every_kind_of_fit_can_be_streamed(options: dict[str, Any], tmp_path: Path) -> None:
    x, y = matrix(900, 5, torch.bfloat16)
    write_activations(tmp_path, {"a": x}, y)
    activations, labels = cxp.open_activations(tmp_path)
    memory = cxp.fit_probes({"a": x}, y, tol=1e-2, **options)["a"]
    stream = cxp.fit_probes(activations, labels, tol=1e-2, memory_limit=1, **options)["a"]
    loaded = cxp.fit_probes(activations, labels, tol=1e-2, **options)["a"]
    for found in (stream, loaded):
        assert torch.equal(found.weights, memory.weights)
        assert (found.loss, found.gap, found.l2) == (memory.loss, memory.gap, memory.l2)
        assert untimed(found.path) == untimed(memory.path) and found.passes == memory.passes


def test_validation_and_evaluation_read_from_disk(tmp_path: Path) -> None:
    x, y = matrix(700, 5, torch.float16)
    write_activations(tmp_path / "train", {"a": x[:500]}, y[:500])
    write_activations(tmp_path / "test", {"a": x[500:]}, y[500:])
    train, test = (cxp.open_activations(tmp_path / name) for name in ("train", "test"))
    options: dict[str, Any] = {"l2": [1e-2, 1.0]}
    held = {"a": x[500:]}, y[500:]
    memory = cxp.fit_probes({"a": x[:500]}, y[:500], validation=held, **options)
    stream = cxp.fit_probes(*train, validation=test, memory_limit=1, **options)
    assert untimed(stream["a"].path) == untimed(memory["a"].path)
    assert stream.evaluate(*test) == memory.evaluate(*held)
    assert np.array_equal(stream["a"].predict(test[0]["a"]), memory["a"].predict(x[500:]))


def test_bad_rows_on_disk_are_named(tmp_path: Path) -> None:
    x, y = matrix(500, 5, torch.float32)
    x[123, 4] = torch.nan
    write_activations(tmp_path, {"a": x}, y)
    activations, labels = cxp.open_activations(tmp_path)
    for limit in (1, None):
        with pytest.raises(ValueError, match=r"\['a'\]: .* nan in row 123, .* 4 \(bad rows: 1"):
            cxp.fit_probes(activations, labels, l2=1e-2, memory_limit=limit)
    with pytest.raises(ValueError, match=r"validation\['a'\]: .* nan in row 123"):
        cxp.fit_probes({"a": x[:100]}, y[:100], l2=1.0, validation=(activations, labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_limit": 0}, "memory_limit: expected a number above 0, found 0"),
        ({"memory_limit": float("nan")}, "memory_limit: expected a number above 0, found nan"),
        ({"memory_limit": "8GB"}, "memory_limit: expected a number above 0, found '8GB'"),
        ({"device": 5.5}, "device: found 5.5, which cannot be used"),
        ({"device": "meta"}, "device: found 'meta', which cannot be used: it holds no values"),
        ({"device": "warp"}, "device: found 'warp'"),
        pytest.param(
            {"device": "cuda"},
            "device: found 'cuda', which cannot be used",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="here it can be used"),
        ),
    ],
)
def test_limits_and_devices_are_checked_at_the_door(options: Any, message: str) -> None:
    x, y = matrix(50, 3, torch.float32)
    with pytest.raises((TypeError, ValueError), match=message):
        cxp.fit_probes(x, y, **options)


def test_the_fastest_tier_that_fits_is_chosen(tmp_path: Path) -> None:
    x, y = matrix(100, 5, torch.float32)
    write_activations(tmp_path, {"a": x}, y)
    shards = cxp.open_activations(tmp_path)[0]["a"]
    assert shards.nbytes == 2000
    assert isinstance(place(shards, None, 2000), Rows)
    assert isinstance(place(shards, None, 1999), Stream)
    assert isinstance(place(shards, "cpu", None), Rows)
    assert place(x, None, 1).reference is x  # what is in memory is used where it is
    assert place(x, "cpu", 1).reference.data_ptr() == x.data_ptr()
    moved = place(x.numpy(), "cpu", None)
    assert torch.equal(moved.take(np.arange(3)), x[:3])
    assert free_memory(torch.device("cpu")) > 1e8


def test_neighbours_divide_what_is_free_and_not_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda": 800.0, "cpu": 4000.0}
    monkeypatch.setattr(
        "convexprobe.activations.placement.free_memory", lambda device: free[device.type]
    )
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert choose_tier(400, gpu, None, disk=True) == ("device", 400)
    for host, here, tier in ((4, 2, "host"), (5, 2, "host"), (6, 2, "disk")):
        known = Neighbours(host, here)
        assert choose_tier(400, gpu, None, disk=True, neighbours=known) == (tier, 200)
        assert choose_tier(400, gpu, 400.0, disk=True, neighbours=known) == ("device", 400)
    assert choose_tier(500, cpu, None, disk=True, neighbours=Neighbours(4, 2)) == ("device", 500)
    assert choose_tier(501, cpu, None, disk=True, neighbours=Neighbours(4, 2)) == ("disk", 500)


def test_a_device_has_the_same_name_in_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, Any] = {"uuid": "GPU-7"}
    module = SimpleNamespace(get_device_properties=lambda device: SimpleNamespace(**known))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert identity(torch.device("cpu")) == "cpu"
    assert identity(torch.device("cuda", 0)) == identity(torch.device("cuda", 1)) == "GPU-7"
    known.clear()  # number 0 is another device where other devices are visible
    names = set()
    for visible in ("0,1", "2,3"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        names |= {identity(torch.device("cuda", number)) for number in range(2)}
    assert len(names) == 4


def test_samples_keep_to_the_limit(tmp_path: Path) -> None:
    x, y = matrix(20_000, 4, torch.float32)
    write_activations(tmp_path, {"a": x}, y, rows=5000)
    shards = cxp.open_activations(tmp_path)[0]["a"]
    assert Stream(shards, "cpu", 1e3).capacity == LEAST
    assert Stream(shards, "cpu", 1e6).capacity == 6250
    problem = Problem(Stream(shards, "cpu", 1e3), y, [1e-3], classes=3)
    state = SOLVERS["newton-cg"](rows=5000).init(problem, problem.constant_classifier())
    assert len(state.sample.index) < 1.1 * LEAST


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = matrix(400, 5, torch.float32)
    write_activations(tmp_path, dict.fromkeys("abc", x), y)
    alive: list[weakref.ref[Any]] = []

    def watched(*args: Any, **options: Any) -> Any:
        assert all(source() is None for source in alive)
        alive.append(weakref.ref(source := place(*args, **options)))
        return source

    monkeypatch.setattr("convexprobe.probes.layer.place", watched)
    cxp.fit_probes(*cxp.open_activations(tmp_path), l2=[0.1, 1.0])
    assert len(alive) == 3


@pytest.mark.parametrize("kind", ["memory", "stream"])
@pytest.mark.parametrize("solver", ["auto", "svrg", "adam"])
def test_a_device_without_room_is_given_smaller_blocks(
    kind: str, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = matrix(3000, 6, torch.float64)
    expected = cxp.fit_probes(x, y, solver, l2=1e-2, tol=1e-2)["activations"]
    source = Rows(x) if kind == "memory" else Stream(HostRows(x), "cpu", 1e9)
    device = Exhausted(source.blocks, 400)
    monkeypatch.setattr(source, "blocks", device)
    monkeypatch.setattr("convexprobe.probes.layer.place", lambda *args, **options: source)
    monkeypatch.setattr("convexprobe.probes.layer.FEW", 0)  # no NumPy view of the rows
    found = cxp.fit_probes(x, y, solver, l2=1e-2, tol=1e-2)["activations"]
    assert device.refused == 5 and source.block(6) == 256  # 8192 is halved until 400 fit
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-8, atol=1e-10)
    assert found.passes == expected.passes  # what was broken off is not counted


def test_a_device_without_any_room_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Rows(torch.ones(10, 2))
    monkeypatch.setattr(source, "blocks", Exhausted(source.blocks, 0))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        Problem(source, torch.zeros(10, dtype=torch.int64), [1.0], classes=2)
    assert source.block(2) == 1


def test_a_pass_that_is_broken_off_leaves_no_thread(stored: Any) -> None:
    x, _ = matrix(1000, 7, torch.float32)
    stream = Stream(stored(x), "cpu", 0)
    for _ in stream.blocks():
        break
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("convexprobe-read")]
