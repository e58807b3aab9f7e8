"""The tasks of a layer, solved down the path of penalties a few neighbours at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from convexprobe.arrays.backend import Array
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_space import RowSpace, is_wide, row_space
from convexprobe.problem.tasks import take_tasks
from convexprobe.solvers import Solver
from convexprobe.solvers.early_stopping import ValidationLoss
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Record, Status
from convexprobe.solvers.starts import Previous, best_start

NEIGHBOURS = 4
"""Penalties solved together, from large to small; a chunk starts where the one before ended.

Neighbours share rows of curvature and a preconditioner; penalties far apart need different ones
(measured on 45 values of C, 20 000 x 512 trained activations: 81 passes of 45 tasks at once, 20 s;
2.6 s in chunks of 8 or 3, 3.3 s one by one).
"""

MEMORY = 2e9
"""Bytes that the logits-sized arrays of tasks solved together may take; more groups wait."""


@dataclass(frozen=True)
class Fitted:
    """The solution of one task; `passes` and `seconds` are the layer's when it ended.

    Attributes are those of `Solution`; `start` is what `best_start` calls it.
    """

    w: Array
    value: float
    loss: float
    gap: float
    status: Status
    passes: float
    seconds: float
    error: float
    start: str


def chunk(n: int, d: int, k: int) -> tuple[int, int]:
    """How many neighbouring penalties, and how many groups, are solved together at most."""
    # Logits of all rows bound the sample's; a quasi-Newton memory holds twenty vectors (m, p).
    task = 4.0 * k * (n + 40 * d)
    together = int(min(max(MEMORY // task, 1), NEIGHBOURS))
    return together, int(max(MEMORY // (task * together), 1))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a start may overflow: not taken
def solve_path(
    groups: Problem,
    penalties: np.ndarray,
    solver: Solver,
    previous: Previous | None,
    *,
    tol: float,
    max_passes: float,
    max_seconds: float,
    callbacks: Sequence[Callable[[Record], None]] = (),
    stopping: ValidationLoss | None = None,
) -> list[list[Fitted]]:
    """Solve every group at every penalty.

    Args:
        groups: a family with one task a group; its own penalties are not used.
        penalties: host `(v,)`, in any order.
        solver: the algorithm.
        previous: an earlier probe of each group, to start from where that is better, or None.
        tol: relative tolerance.
        max_passes: budget of passes of all of it.
        max_seconds: budget of seconds of all of it.
        callbacks: called with each `Record`.
        stopping: of the groups, to stop early by instead of by the certificate.

    Returns:
        For each group, its solutions in the order of `penalties`.
    """
    started = time.perf_counter()
    out: dict[tuple[int, int], Fitted] = {}
    together, width = chunk(groups.n // groups.communicator.size, groups.d, groups.k)
    order = np.argsort(-penalties, kind="stable")
    wide = previous is None and stopping is None and bool((penalties > 0).all())
    space = row_space(groups) if wide and is_wide(groups) else None
    for first in range(0, groups.m, width):
        members = range(first, min(first + width, groups.m))
        origin = None
        for start in range(0, len(order), together):
            values = order[start : start + together]
            tasks = [(g, v) for g in members for v in values.tolist()]
            index = [g for g, _ in tasks]
            family = groups.take_tasks(index, penalties[[v for _, v in tasks]])
            if origin is not None:
                origin = take_tasks(origin, [g - first for g in index])
            begin = best_start(family, take_tasks(previous, index), origin=origin)
            w = begin.w
            if space is not None:
                left = max_seconds - (time.perf_counter() - started)
                w = _solve_inside(space, family, index, solver, w, 0.5 * tol, max_passes, left)
            state = solver.init(family, w)
            if begin.inverse is not None:
                state.inverse = begin.inverse  # of nearly the same point: building it costs a pass
            spent = groups.communicator.clock(time.perf_counter() - started)
            solution = solve(
                family,
                solver,
                w,
                tol=tol,
                max_passes=max_passes,
                max_seconds=max_seconds - spent,
                callbacks=callbacks,
                state=state,
                stopping=None if stopping is None else stopping.take_tasks(index),
            )
            for i, key in enumerate(tasks):
                out[key] = Fitted(
                    w=solution.w[i, :],
                    value=float(solution.value[i]),
                    loss=float(solution.loss[i]),
                    gap=float(solution.gap[i]),
                    status=solution.status[i],
                    passes=float(solution.passes[i]),
                    seconds=spent + float(solution.seconds[i]),
                    error=float(solution.error[i]),
                    start=begin.names[i],
                )
            last = int(values[-1])
            origin = groups.xp.stack([out[g, last].w for g in members])
    return [[out[g, v] for v in range(len(penalties))] for g in range(groups.m)]


def _solve_inside(
    space: RowSpace,
    family: Problem,
    index: list[int],
    solver: Solver,
    w: Array,
    tol: float,
    max_passes: float,
    max_seconds: float,
) -> Array:
    """Where a solve in the rows' space arrives, on the rows themselves."""
    inside = space.problem.take_tasks(index, family.host_l2)
    before = inside.passes
    found = solve(
        inside, solver, space.project(w), tol=tol, max_passes=max_passes, max_seconds=max_seconds
    )
    # Its rows are n features wide, not d; there and back is half a pass each.
    family.count_passes((inside.passes - before) * family.n / family.d + 1.0)
    return space.lift(found.w)
