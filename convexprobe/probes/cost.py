"""Predict a fit's memory, passes and time before running it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from convexprobe._tables import aligned, html_table
from convexprobe.activations.checks import check_activations, check_memory
from convexprobe.activations.placement import choose_tier, logit_room, nbytes
from convexprobe.activations.source import Rows
from convexprobe.activations.stored import StoredRows
from convexprobe.activations.stream import AHEAD, capacity, chunk_rows
from convexprobe.arrays.backend import Array, like, namespace, on_cpu, synchronise
from convexprobe.arrays.products import block_rows
from convexprobe.probes.labels import read_labels
from convexprobe.probes.memory import Family, moments, peak
from convexprobe.probes.options import GRID, check_folds, check_l2
from convexprobe.probes.validation import check_validation_rows
from convexprobe.problem.objective import Problem
from convexprobe.solvers import Solver, by_name
from convexprobe.solvers.path import tasks_at_once

PASSES, FURTHER, GRID_PASSES = 12.0, 4.0, 100.0
"""Expected passes of one penalty, of each further one, and of `l2="auto"`, which ends at 1e-6 of
the variance; see `docs/decisions/cost.md`."""

OVERHEAD = 11e6
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

    def cells(self) -> list[list[str]]:
        """The printed table, cell by cell; the first row has the names of the columns."""
        table = [["layer", "rows", "disk, MB", "host, MB", "device, MB", "passes", "seconds"]]
        for name, cost in (*self.layers.items(), ("all", self.total)):
            sizes = (f"{b / 1e6:.0f}" for b in (cost.disk, cost.host, cost.device))
            where = self.tiers.get(name, "")
            table.append([name, where, *sizes, f"{cost.passes:.0f}", f"{cost.seconds:.1f}"])
        return table

    def __str__(self) -> str:
        return aligned(self.cells())

    def _repr_html_(self) -> str:
        return html_table(self.cells(), left=(0, 1))


def estimate(
    activations: Any,
    labels: Any,
    solver: str | Solver = "auto",
    *,
    l2: float | Sequence[float] | str = "auto",
    validation: tuple[Any, Any] | None = None,
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
        labels, solver, l2, validation, cv, device, memory_limit: as for `fit_probes`.

    Raises:
        TypeError, ValueError: input refused, as by `fit_probes`.
    """
    layers = check_activations(activations, values=False)
    check_memory(device, memory_limit)
    encoded = read_labels(labels, int(next(iter(layers.values())).shape[0]), None)
    grid, algorithm, folds = (
        check_l2(l2),
        by_name(solver),
        check_folds(cv, validation=validation is not None),
    )
    penalties = len(GRID if grid is None else grid)
    groups = len(encoded.names) * (1 if folds is None else folds + 1)
    k = max(len(c) for c in encoded.classes)
    held = None
    if validation is not None:
        held = check_validation_rows(validation, layers, values=False)
    hold = folds is not None or (penalties > 1 and held is None)
    costs, tiers = {}, {}
    for name, x in layers.items():
        example = _example(x, device)
        n, d = (int(size) for size in x.shape)
        tier, allowed = _tier(x, device, memory_limit)
        tiers[name] = tier
        together, width = tasks_at_once(n, d, k)
        width = min(width, groups)
        m = width * (1 if grid is None else min(together, penalties))
        item = 8 if example.dtype == namespace(example).float64 else 4
        family = Family(
            n=n,
            d=d,
            k=k,
            m=m,
            item=item,
            stored=example.dtype.itemsize,
            capacity=n if tier == "device" else min(n, capacity(allowed, d)),
            held=tier == "device",
            passes=PASSES,
            room=_room(x, device, memory_limit),
        )
        loaded = [_loaded(x, device, memory_limit)]
        if held is not None:
            loaded.append(_loaded(held[name], device, memory_limit))
        host, work = (sum(sizes) for sizes in zip(*loaded, strict=True))
        more = _memory(family, algorithm, example, tier, len(encoded.names), groups, hold=hold)
        passes = GRID_PASSES if grid is None else PASSES + FURTHER * (penalties - 1)
        passes *= -(-groups // width)
        costs[name] = Cost(
            disk=nbytes(x) if isinstance(x, StoredRows) else 0,
            host=int(host + more[0] + (work if on_cpu(example) else 0.0)),
            device=0 if on_cpu(example) else int(work + more[1]),
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


def _memory(
    family: Family,
    solver: Solver,
    example: Array,
    tier: str,
    concepts: int,
    groups: int,
    *,
    hold: bool,
) -> tuple[float, float]:
    """Bytes of a fit on the host and on the device, 0 on a CPU, beside the rows.

    `groups` are the tasks at a penalty, `concepts` those that differ in labels; `hold` says whether
    rows are held out of them.
    """
    n, d, columns = family.n, family.d, family.m * family.k
    # A block's conversion, logits and their temporaries.
    block = block_rows(max(d, columns), example)
    work = min(n, block) * family.item * ((d if family.converted else 0) + 3.0 * columns)
    # Labels, and copies of them: where they are used, for each penalty, and once some tasks end.
    host = OVERHEAD + 8.0 * n * concepts
    copies = groups if groups > concepts or not on_cpu(example) else 0
    again = (1.75 if concepts > 1 else 1.0 if family.m > groups else 0.0) * family.m
    work += 8.0 * n * (copies + (again if groups > 1 else 0.0))
    if hold:  # weights, 0 for rows that are held out
        host += 8.0 * n * groups
        work += family.item * n * (1.0 if groups == 1 else groups + again)
    if tier != "device":
        row = family.stored * d
        # Half of the buffers ahead: a pass that is quicker than the reading fills no more.
        buffers = (0.5 * AHEAD + 1.0) * min(n, chunk_rows(block, row)) * row
        host += buffers if tier == "disk" else 0.0
        work += 0.0 if on_cpu(example) else buffers
    solve = moments(solver, family)
    if on_cpu(example):
        return host + work + peak([[*s.work, *s.host] for s in solve]), 0.0
    return host + peak([s.host for s in solve]), work + max(sum(s.work) for s in solve)


def _tier(
    x: Array | StoredRows, device: str | None, memory_limit: float | None
) -> tuple[str, float]:
    """Where a layer's rows will be kept, and the bytes that they may take where they are
    multiplied."""
    stored, target = isinstance(x, StoredRows), torch.device(device or "cpu")
    tier, allowed = choose_tier(nbytes(x), target, memory_limit, disk=stored)
    if not stored and (device is None or tier == "device"):
        return "device", np.inf
    return tier, allowed


def _room(x: Array | StoredRows, device: str | None, memory_limit: float | None) -> float:
    """Bytes that logits of all rows may take; see `activations.placement.place`."""
    stored, target = isinstance(x, StoredRows), torch.device(device or "cpu")
    here = device is None or (isinstance(x, torch.Tensor) and x.device == target)
    if here and not stored:
        return logit_room("device", nbytes(x), memory_limit)
    tier, allowed = choose_tier(nbytes(x), target, memory_limit, disk=stored)
    return logit_room(tier, nbytes(x), allowed)


def _loaded(
    x: Array | StoredRows, device: str | None, memory_limit: float | None
) -> tuple[float, float]:
    """Bytes of a layer's rows that are loaded to the host, and where they are multiplied."""
    tier, _ = _tier(x, device, memory_limit)
    stored, size = isinstance(x, StoredRows), float(nbytes(x))
    if tier == "device":
        return 0.0, size if stored or device is not None else 0.0
    return size if tier == "host" and stored else 0.0, 0.0


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
