"""Predict a fit's memory, passes and time before running it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from convexprobe.activations.checks import check_activations, check_memory
from convexprobe.activations.placement import choose_tier
from convexprobe.activations.source import Rows
from convexprobe.activations.stored import StoredRows
from convexprobe.activations.stream import AHEAD, capacity, chunk_rows
from convexprobe.arrays.backend import Array, like, namespace, on_cpu, synchronise
from convexprobe.arrays.products import block_rows
from convexprobe.probes.labels import read_labels
from convexprobe.probes.options import GRID, check_folds, check_l2
from convexprobe.probes.table import aligned
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_sample import sample_size
from convexprobe.solvers import SVRG, NewtonCG, Solver, by_name
from convexprobe.solvers.adaptive import Adaptive
from convexprobe.solvers.path import tasks_at_once

PASSES, FURTHER, GRID_PASSES = 12.0, 4.0, 200.0
"""Expected passes of one penalty, of each further one, and of `l2="auto"`, which ends at 1e-6 of
the variance; see `docs/decisions/cost.md`."""

OVERHEAD = 30e6
"""Bytes that the libraries allocate beside the arrays once work begins."""


@dataclass(frozen=True)
class Cost:
    """The cost of fitting one layer, or several layers one after another.

    Attributes:
        disk: bytes of the rows on disk.
        host: bytes of host memory at the peak, beyond the arrays that are there already.
        device: bytes of the device's memory at the peak, likewise; 0 on a CPU.
        passes: expected passes.
        seconds: expected seconds, at the speed measured on a block of rows.
    """

    disk: int
    host: int
    device: int
    passes: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """The cost of a call of `fit_probes`, by layer and in all. Prints as a table.

    Attributes:
        layers: the cost of each layer.
        tiers: where each layer's rows are kept: "device" (where they are multiplied), "host" or
            "disk".
        total: sums over the layers; of memory, the largest.
    """

    layers: Mapping[str, Cost]
    tiers: Mapping[str, str]
    total: Cost

    def __str__(self) -> str:
        table = [["layer", "rows", "disk, MB", "host, MB", "device, MB", "passes", "seconds"]]
        for name, cost in (*self.layers.items(), ("all", self.total)):
            sizes = (f"{b / 1e6:.0f}" for b in (cost.disk, cost.host, cost.device))
            where = self.tiers.get(name, "")
            table.append([name, where, *sizes, f"{cost.passes:.0f}", f"{cost.seconds:.1f}"])
        return aligned(table)


def estimate(
    activations: Any,
    labels: Any,
    solver: str | Solver = "auto",
    *,
    l2: float | Sequence[float] | str = "auto",
    cv: int | None = None,
    device: str | None = None,
    memory_limit: float | None = None,
) -> Estimate:
    """Predict what `fit_probes` with these arguments will take; reads no row.

    Memory is the sum of the arrays that are alive at the worst moment. Passes (to `tol=1e-3`)
    depend on the layer's condition, which is not known here: they are an order of magnitude.
    Seconds are those passes at the speed of one block of made-up rows; a slow disk adds to them.

    Args:
        activations: as for `fit_probes`; for rows still to be extracted, tensors on torch's "meta"
            device, which have a shape and a dtype but no memory.
        labels, solver, l2, cv, device, memory_limit: as for `fit_probes`.

    Raises:
        TypeError, ValueError: input refused, as by `fit_probes`.
    """
    layers = check_activations(activations, values=False)
    check_memory(device, memory_limit)
    encoded = read_labels(labels, int(next(iter(layers.values())).shape[0]), None)
    grid, algorithm, folds = check_l2(l2), by_name(solver), check_folds(cv)
    penalties = len(GRID if grid is None else grid)
    groups = len(encoded.names) * (1 if folds is None else folds + 1)
    k = max(len(c) for c in encoded.classes)
    costs, tiers = {}, {}
    for name, x in layers.items():
        example = _example(x, device)
        n, d = (int(size) for size in x.shape)
        size = n * d * example.dtype.itemsize
        stored, target = isinstance(x, StoredRows), torch.device(device or "cpu")
        tier, allowed = choose_tier(size, target, memory_limit, disk=stored)
        if not stored and (device is None or tier == "device"):
            tier, allowed = "device", np.inf
        tiers[name] = tier
        together, width = tasks_at_once(n, d, k)
        m = min(together, penalties) * min(width, groups)
        most = n if tier == "device" else min(n, capacity(allowed, d))
        work, host = _working_set(algorithm, example, n, k, m, most)
        # labels, and the weights of rows that are held out
        weighted = cv is not None or penalties > 1
        work += n * groups * (8 + (4 if weighted else 0))
        host += OVERHEAD + 8 * n * groups * (2 if weighted else 1)
        if tier == "device" and (stored or device is not None):
            work += size
        elif tier == "host" and stored:
            host += size
        if tier != "device":
            block = block_rows(max(d, m * k), example)
            buffers = (AHEAD + 1) * min(n, chunk_rows(block, size // n)) * size // n
            host += buffers if tier == "disk" else 0
            work += buffers if not on_cpu(example) else 0
        passes = GRID_PASSES if grid is None else PASSES + FURTHER * (penalties - 1)
        passes *= -(-groups // width)
        costs[name] = Cost(
            disk=size if stored else 0,
            host=int(host + work if on_cpu(example) else host),
            device=0 if on_cpu(example) else int(work),
            passes=passes,
            seconds=passes * n * _seconds_a_row(example, k, m),
        )
    every = list(costs.values())
    total = Cost(
        disk=sum(c.disk for c in every),
        host=max(c.host for c in every),
        device=max(c.device for c in every),
        passes=sum(c.passes for c in every),
        seconds=sum(c.seconds for c in every),
    )
    return Estimate(costs, tiers, total)


def _working_set(
    solver: Solver, x: Array, n: int, k: int, m: int, most: int
) -> tuple[float, float]:
    """Bytes beside the rows where they are multiplied, and bytes of the host beside those.

    For `m` tasks that are solved together, at the worst of four moments: the end of a line search
    (three arrays of logits), the draw of a sample (on the host, in float64), the build of a
    preconditioner, and SVRG's first snapshot.
    """
    d, item = x.shape[1], 8 if x.dtype == namespace(x).float64 else 4
    logits, rows, vectors = item * m * k * n, item * m * n, 20 * 8 * m * k * (d + 1)
    converted = 0 if x.dtype.itemsize == item else d
    block = block_rows(max(d, m * k), x) * item * (converted + 6 * m * k)
    draw = 8 * n * (2 * m + 4)
    if isinstance(solver, Adaptive):
        return 3 * rows + min(n, 2048) * item * (d + m * k) + vectors + block, draw
    growth = 2 if isinstance(solver, NewtonCG) else 1
    size = min(n if n <= 10_000 else sample_size(n, d, 2500, growth), most)
    sample, curvature = size * item * (d + m * k), 8.0 * min(d, size, 1024) ** 2
    inverse = m * curvature
    moments = [
        # Half of what earlier draws took stays in the heap, in pieces.
        (3 * logits + rows + sample + inverse, draw // 2),
        (2 * logits + 2 * rows + 2 * sample + size * d * x.dtype.itemsize + inverse, draw),
        (logits + rows + 3 * sample + 2 * inverse + 2 * curvature, 0),
    ]
    if isinstance(solver, SVRG) and n // 4 <= most:
        moments.append((n // 4 * d * (item + x.dtype.itemsize), draw // 4))
    work, host = max(moments, key=sum)
    return work + vectors + block, host


def _example(x: Array | StoredRows, device: str | None) -> Array:
    """A made-up block of rows of the same width, dtype and library, where the work will be."""
    n, d = (int(size) for size in x.shape)
    values = np.random.default_rng(0).standard_normal((min(n, 2048), d)).astype(np.float32)
    if isinstance(x, (StoredRows, torch.Tensor)):
        here = "cpu" if isinstance(x, StoredRows) or x.device.type == "meta" else x.device
        return torch.from_numpy(values).to(device or here, x.dtype)
    if device is not None:
        return torch.from_numpy(values).to(device)
    return like(values, x, x.dtype)


def _seconds_a_row(x: Array, k: int, m: int) -> float:
    """Seconds that a row adds to an evaluation, the median of three."""
    n = x.shape[0]
    labels = like(np.arange(n) % k, x)
    problem = Problem(Rows(x), labels, np.ones(m), classes=k)
    w = problem.constant_classifier() + 1e-3
    times = []
    for _ in range(4):
        started = time.perf_counter()
        problem.evaluate(w)
        synchronise(x)
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:])) / n
