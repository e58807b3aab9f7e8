"""How often the host waits for the device, and what travels between them, at most.

The budgets: four waits a step of the loop, and four more where a step builds a preconditioner; in
conjugate gradients one at the third iteration and every fifth after it; none for a block of rows.
The rows travel once; if they are streamed, once a step, or once for each of a pass's two products
where they are few. All else together is a hundredth of that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import convexprobe as cxp
from convexprobe.activations.source import Rows
from convexprobe.activations.stored import HostRows
from convexprobe.activations.stream import Stream
from convexprobe.problem import kept_logits
from convexprobe.problem.eigen_blocks import EigenBlocks
from convexprobe.problem.objective import Problem
from convexprobe.problem.preconditioners import Curvature
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers import SOLVERS
from convexprobe.solvers.loop import solve
from tests.device.simulated import NAME, Counts, counted, register
from tests.oracle import random_data

register()

STEP, BUILD, ONCE = 4, 4, 5
"""Waits of a step, of a preconditioner's build, and of a solve's start and end."""


def family(n: int, d: int, k: int, l2: list[float], dtype: torch.dtype = torch.float32) -> Problem:
    data = random_data(n, d, k)
    x, y = torch.tensor(data.x, dtype=dtype), torch.tensor(data.y)
    return Problem(Rows(x.to(NAME)), y.to(NAME), l2, classes=k)


@contextmanager
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often preconditioners are built, and samples' Hessians are multiplied."""
    found: Counter[str] = Counter()

    def count(kind: Any, name: str) -> None:
        method = getattr(kind, name)

        def counting(*args: Any) -> Any:
            found[name] += 1
            return method(*args)

        monkeypatch.setattr(kind, name, counting)

    count(Curvature, "build")
    count(EigenBlocks, "build")
    count(Sample, "curvature")
    yield found
    monkeypatch.undo()


def waits_in(counts: Counts, function: str) -> int:
    return sum(n for line, n in counts.waits.items() if function in line)


@pytest.mark.parametrize(
    "n, l2", [(1000, [1e-4, 1e-3, 1e-2]), (11_000, [1e-3])], ids=["three tasks", "many rows"]
)
@pytest.mark.parametrize("name", ["newton-cg", "newton-cholesky", "lbfgs"])
def test_a_step_waits_four_times_at_most(
    name: str, n: int, l2: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = family(n, 10, 3, l2)
    with calls(monkeypatch) as made, counted() as counts:
        found = solve(problem, SOLVERS[name](), tol=1e-4, max_passes=100)
    looks = waits_in(counts, "conjugate_gradient.py")
    assert looks <= found.steps.max() + made["curvature"] / 5, str(counts)
    # a task that leaves the work moves some arrays, but nothing that the host waits for
    most = STEP * found.steps.max() + BUILD * made["build"] + ONCE
    assert counts.synchronisations - looks <= most, f"{made}\n{counts}"


@pytest.mark.parametrize("name", ["sag", "saga", "svrg", "katyusha", "adam", "rmsprop"])
def test_no_minibatch_has_a_wait_of_its_own(name: str) -> None:
    problem = family(1000, 10, 3, [1e-3])
    waits: list[int] = []
    with counted() as counts:
        solve(
            problem,
            SOLVERS[name](),
            tol=1e-5,
            max_steps=2,
            callbacks=[lambda record: waits.append(counts.synchronisations)],
        )
    assert waits[-1] - waits[0] <= STEP * (len(waits) - 1) + BUILD, str(counts)


def test_a_pass_has_no_wait_however_many_blocks_it_has() -> None:
    problem = family(3000, 10, 3, [1e-3])
    w = torch.randn(1, problem.p, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = w.to(NAME)
    found = []
    for most in (3000, 100):
        problem.rows.most_rows = most
        at = problem.evaluate(w, keep=True)  # some rows are looked up once
        with counted() as counts:
            problem.evaluate(w, logits=at.logits)
            problem.logit_change(w)
            problem.ray(at, w, at.logits)(torch.ones(1, dtype=torch.float64, device=NAME))
        found.append(counts.synchronisations)
    assert found == [0, 0]


@pytest.mark.parametrize("name", ["auto", "newton-cg", "lbfgs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_travel_once(name: str, dtype: torch.dtype) -> None:
    data = random_data(1500, 700, 2)
    x, y = torch.tensor(data.x, dtype=dtype), torch.tensor(data.y, dtype=torch.int32)
    with counted() as counts:
        cxp.fit_probes({"a": x}, y, name, l2=1e-2, tol=1e-2, device=NAME, max_passes=30)
    labels = 8 * len(y)
    travelled = counts.to_device.total() + counts.to_host.total()
    assert travelled <= x.nbytes * 1.01 + labels, str(counts)


@pytest.mark.parametrize("name", ["lbfgs", "newton-cg"])
def test_many_streamed_rows_travel_once_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_logits, "MANY", 10_000)
    data = random_data(11_000, 100, 2)
    x, y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y)
    problem = Problem(Stream(HostRows(x), NAME, 1e9), y.to(NAME), [1e-2], classes=2)
    with counted() as counts:
        found = solve(problem, SOLVERS[name](), tol=1e-3)
    read = sum(n for line, n in counts.to_device.items() if "_fetch" in line) / x.nbytes
    assert found.steps.max() > 1
    assert read <= 1 + found.steps.max()  # class sums, and an evaluation a step


def test_few_streamed_rows_travel_once_a_product() -> None:
    data = random_data(11_000, 100, 2)
    x, y = torch.tensor(data.x, dtype=torch.float32), torch.tensor(data.y)
    stream = Stream(HostRows(x), NAME, 1e9)
    problem = Problem(stream, y.to(NAME), [1e-2], classes=2)
    with counted() as counts:
        found = solve(problem, SOLVERS["lbfgs"](), tol=1e-2)
    sampled = 4 * 100 * 11_000  # of the preconditioner: gathered, at most as many as all rows
    products = 2 * found.passes.max()  # a pass is two products, which may read the rows each
    assert counts.to_device.total() <= 1.01 * products * x.nbytes + sampled, str(counts)
    # row numbers come to the host once a draw, but no block that is read waits for the device
    assert waits_in(counts, "_fetch") == waits_in(counts, "blocks") == 0, str(counts)


def test_a_walk_over_penalties_waits_little_beside_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = random_data(1500, 12, 3)
    x, y, steps = torch.tensor(data.x).to(NAME), torch.tensor(data.y), []
    with calls(monkeypatch) as made, counted() as counts:
        probe = cxp.fit_probes({"a": x}, y)["a"]
    steps = waits_in(counts, "certifier.py:")  # the loop reads its numbers once a step
    penalties = len(probe.path) + 1
    looks = waits_in(counts, "conjugate_gradient.py")
    most = STEP * steps + BUILD * made["build"] + (ONCE + 3) * penalties + 10
    assert counts.synchronisations - looks <= most, f"{made}\n{counts}"
