"""This processor's ceilings, measured: the CPU seconds of a thread by kind of operation and size.

Memory is as fast as the level of it where an array still is: the working set, for which bandwidths
are measured, is what was touched since the array was. Products are timed in the shapes that occur.
A call's share, Python included, is that of an evaluation in blocks of a row, between which the
caches are swept, as the arrays of larger blocks sweep them. What the allocator gives back to the
system comes again page by page: those faults are counted by the system, and have their own price.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks.roofline.counter import Counter, Operation
from convexprobe.activations.source import Rows
from convexprobe.problem.objective import Problem

SETS = tuple(1 << i for i in range(20, 28))
"""Bytes of the working sets for which bandwidths are measured."""

ROWS = 2048
"""Of the logits on which they are measured, `(1, k, ROWS)`."""

SWEPT = 10 << 20
"""Bytes of the arrays of a block of rows."""


def clock(work: Callable[[], object], repeats: int = 7, least: float = 2e-3) -> float:
    """Median CPU seconds of the work, called until a repeat takes at least `least` seconds.

    Of one thread, so that what else runs on the machine counts little.
    """
    work()
    started = time.process_time()
    work()
    calls = 1 + int(least / max(time.process_time() - started, 1e-7))
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        for _ in range(calls):
            work()
        seconds.append((time.process_time() - started) / calls)
    return median(seconds)


def faults(work: Callable[[], object], calls: int = 3) -> float:
    """Pages that the work takes from the system in a call."""
    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / calls


def _fault(size: int = 64 << 20) -> float:
    """Seconds that a page takes which comes from the system."""
    kept = torch.empty(size, dtype=torch.int8)

    def fresh() -> Tensor:
        return torch.empty(size, dtype=torch.int8).fill_(1)

    return max(clock(fresh) - clock(lambda: kept.fill_(1)), 0.0) / max(faults(fresh), 1.0)


def _kinds(z: Tensor) -> dict[str, Callable[[], object]]:
    """One operation of each kind on logits, as evaluations have them."""
    row, out, half = torch.ones_like(z[:, :1, :]), torch.empty_like(z), z.to(torch.float16)
    labels = torch.zeros(row.shape, dtype=torch.int64)
    return {
        "elementwise": lambda: torch.sub(z, row, out=out),
        "in place": lambda: z.mul_(row),
        "reduction": lambda: z.sum(1, keepdim=True),
        "copy": lambda: out.copy_(z),
        "conversion": lambda: out.copy_(half),
        "wide reduction": lambda: z.sum(2, dtype=torch.float64),
        "index": lambda: torch.gather(z, 1, labels),
        "transcendental": lambda: torch.exp(z, out=out),
    }


def _bandwidths(size: int, fault: float) -> dict[str, float]:
    """Bytes/s of each kind of operation on so many bytes, without its call and its faults."""
    z = torch.rand((1, size // (8 * ROWS), ROWS))
    few = _kinds(z[:, :1, :1])
    rates = {}
    for kind, work in _kinds(z).items():
        with Counter() as counter:
            work()
        whole, aside = clock(work), clock(few[kind]) + fault * faults(work)
        rates[kind] = counter.operations[0].bytes / max(whole - aside, 0.1 * whole)
    return rates


class _Swept(Rows):
    """Rows in blocks of one, with work on other arrays before each."""

    def __init__(self, matrix: Tensor, sweep: Callable[[], object]) -> None:
        super().__init__(matrix, most_rows=1)
        self.sweep = sweep

    def blocks(self, columns: int = 0, *, once: bool = False) -> Iterator[tuple[slice, Tensor]]:
        for block in super().blocks(columns, once=once):
            self.sweep()
            yield block


def _call(rows: int = 60) -> float:
    """Seconds of an operation on hardly any numbers, in an evaluation."""
    a = torch.ones(SWEPT // 8)
    b = torch.empty_like(a)

    def sweep() -> None:
        b.copy_(a)

    source = _Swept(torch.ones((rows, 2)), sweep)
    problem = Problem(source, torch.arange(rows) % 3, 1e-3, classes=3)
    w = torch.ones((1, problem.p), dtype=torch.float64)
    with Counter() as counter:
        problem.evaluate(w, keep=True)
    sweeps = rows * clock(sweep)
    return (clock(lambda: problem.evaluate(w, keep=True)) - sweeps) / (
        len(counter.operations) - rows
    )


@dataclass
class Processor:
    """What one thread of this processor reaches.

    Attributes:
        launch: seconds of a call.
        fault: seconds of a page that comes from the system.
        bandwidth: bytes/s by kind of operation, for the working sets `SETS`.
        products: flop/s of the products met, by dtype, shapes and strides.
    """

    launch: float
    fault: float
    bandwidth: dict[str, list[float]]
    products: dict[tuple[object, ...], float] = field(default_factory=dict)

    @classmethod
    def measure(cls) -> Processor:
        """Time each kind of operation, and calls with hardly any numbers."""
        fault = _fault()
        sets = [_bandwidths(size, fault) for size in SETS]
        return cls(_call(), fault, {kind: [rates[kind] for rates in sets] for kind in sets[0]})

    def seconds(self, operation: Operation) -> float:
        """The time of an operation: its call, and its arithmetic or its bytes."""
        if operation.kind in ("product", "decomposition"):
            return self.launch + operation.flops / self._rate(operation)
        rates, took = self.bandwidth[_kind(operation)], self.launch
        for share, since in operation.reach:
            size = np.log(max(operation.bytes, since, 1.0))  # as if all since then was one set
            took += share * operation.bytes / float(np.interp(size, np.log(SETS), rates))
        return took

    def total(self, operations: Iterable[Operation]) -> float:
        """The time of operations one after the other."""
        return float(sum(map(self.seconds, operations)))

    def _rate(self, operation: Operation) -> float:
        """Flop/s of a product or a decomposition in its shapes."""
        key = (operation.name, operation.dtype, operation.shapes, operation.strides)
        if key not in self.products:
            self.products[key] = operation.flops / clock(again(operation))
        return self.products[key]


def _kind(operation: Operation) -> str:
    """Which of the operations that were measured it is like."""
    if operation.transcendental:
        return "transcendental"
    if operation.kind == "copy" and operation.result != operation.dtype:
        return "conversion"
    if operation.kind == "reduction" and operation.result != operation.dtype:
        return "wide reduction"
    if operation.kind == "elementwise" and operation.name.endswith("_"):
        return "in place"
    return operation.kind if operation.kind in ("reduction", "copy", "index") else "elementwise"


def again(operation: Operation) -> Callable[[], object]:
    """The same product or decomposition of other numbers."""
    operands = []
    for shape, stride in zip(operation.shapes, operation.strides, strict=True):
        room = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        numbers = torch.rand(room, dtype=getattr(torch, operation.dtype))
        operands.append(numbers.as_strided(shape, stride))
    function = getattr(torch.ops.aten, operation.name).default
    if operation.kind == "product":
        return lambda: function(*operands)
    size = operation.shapes[0][-1]
    operands[0] = operands[0] * 1e-3 + torch.eye(size, dtype=operands[0].dtype)
    return lambda: function(*operands)
