"""Solve the tasks of a layer at every penalty, from large to small, a few neighbours at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from convexprobe.arrays.backend import Array
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_space import RowSpace, is_wide, row_space, row_space_passes
from convexprobe.problem.tasks import take_tasks
from convexprobe.solvers.base import Solver
from convexprobe.solvers.early_stopping import ValidationLoss
from convexprobe.solvers.float64 import finish_in_float64
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Record, Solution, Solved, Status
from convexprobe.solvers.starts import Previous, best_start

NEIGHBOURS = 4
"""How many penalties are solved together: neighbours share a preconditioner, distant ones do not.

See `docs/decisions/path.md`.
"""

MEMORY = 2e9
"""Bytes that the logits of tasks solved together may take; more tasks wait for their turn."""


@dataclass(frozen=True, kw_only=True)
class Fitted(Solved):
    """One task's record with its parameters `w`, `(p,)` float64."""

    w: Array


def tasks_at_once(
    n: int, d: int, k: int, *, neighbours: int = NEIGHBOURS, memory: float = MEMORY
) -> tuple[int, int]:
    """How many neighbouring penalties, and how many tasks at each, are solved together at most.

    Args:
        n, d, k: rows (of this rank), features and classes.
        neighbours: penalties at most.
        memory: bytes that the logits may take.
    """
    # Logits of all rows bound the sample's; a quasi-Newton memory holds twenty vectors (m, p).
    task = 4.0 * k * (n + 40 * d)
    together = int(min(max(memory // task, 1), neighbours))
    return together, int(max(memory // (task * together), 1))


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a start may overflow: not taken
def solve_path(
    base: Problem,
    penalties: np.ndarray,
    solver: Solver,
    previous: Previous | None,
    *,
    tol: float,
    max_passes: float,
    max_seconds: float,
    callbacks: Sequence[Callable[[Record], None]] = (),
    stopping: ValidationLoss | None = None,
    neighbours: int = NEIGHBOURS,
    memory: float = MEMORY,
) -> list[list[Fitted]]:
    """Solve every task of a family at every penalty.

    Each few neighbouring penalties start from the solutions of the penalty before them.

    Args:
        base: the tasks; their own penalties are not used.
        penalties: host `(v,)`, in any order.
        solver: the algorithm.
        previous: an earlier probe of each task, to start from where that is better, or None.
        tol: relative tolerance.
        max_passes: budget of passes of each penalty.
        max_seconds: budget of seconds of all of it.
        callbacks: called with each `Record`.
        stopping: the tasks' early stopping, instead of the certificate.
        neighbours, memory: as in `tasks_at_once`.

    Returns:
        For each task, its solutions in the order of `penalties`.
    """
    started = time.perf_counter()
    clock, ranks = base.communicator.clock, base.communicator.size
    solutions: dict[tuple[int, int], Fitted] = {}
    together, width = tasks_at_once(
        base.n // ranks, base.d, base.k, neighbours=neighbours, memory=memory
    )
    order = np.argsort(-penalties, kind="stable")
    wide = previous is None and stopping is None and is_wide(base) and bool((penalties > 0).all())
    spaces: list[RowSpace] = []  # built once, when it pays
    for first in range(0, base.m, width):
        members = range(first, min(first + width, base.m))
        origin = None  # the members' solutions at the last penalty
        for position in range(0, len(order), together):
            values = order[position : position + together].tolist()
            keys = [(task, value) for task in members for value in values]
            index = [task for task, _ in keys]
            family = base.take_tasks(index, penalties[[value for _, value in keys]])
            if origin is not None:
                origin = take_tasks(origin, [task - first for task in index])
            start = best_start(family, take_tasks(previous, index), origin=origin)
            waited = clock(time.perf_counter() - started)
            run = partial(solve, tol=tol, callbacks=callbacks)
            left = max_seconds - waited
            watched = None if stopping is None else stopping.take_tasks(index)
            if wide:
                solution = _solve_wide(
                    base, spaces, family, index, start.w, solver, run, tol, max_passes, left
                )
            else:
                solution = run(
                    family,
                    solver,
                    start.w,
                    max_passes=max_passes,
                    max_seconds=left,
                    inverse=start.inverse,
                    stopping=watched,
                )
            if watched is None:
                left = max_seconds - clock(time.perf_counter() - started)
                solution = finish_in_float64(
                    family,
                    solver,
                    solution,
                    tol=tol,
                    max_passes=max_passes,
                    max_seconds=left,
                    callbacks=callbacks,
                )
            for i, key in enumerate(keys):
                known = solution.task(i, start=start.names[i], waited=waited).known()
                solutions[key] = Fitted(**known, w=solution.w[i, :])
            origin = base.xp.stack([solutions[task, values[-1]].w for task in members])
    return [[solutions[task, v] for v in range(len(penalties))] for task in range(base.m)]


def _solve_wide(
    base: Problem,
    spaces: list[RowSpace],
    family: Problem,
    index: list[int],
    w: Array,
    solver: Solver,
    run: Callable[..., Solution],
    tol: float,
    max_passes: float,
    max_seconds: float,
) -> Solution:
    """Solve wide rows as they are for as many passes as their row space costs, then inside it."""
    started = time.perf_counter()
    if not spaces:
        price = min(row_space_passes(family), max_passes)
        solution = run(family, solver, w, max_passes=price, max_seconds=max_seconds)
        if Status.MAX_PASSES not in solution.status or price == max_passes:
            return solution
        w = solution.w
        spaces.append(row_space(base))
    space, left = spaces[0], max_seconds - (time.perf_counter() - started)
    inside = space.problem.take_tasks(index, family.host_l2)
    before = inside.passes
    start = space.project(w)
    solution = run(inside, solver, start, tol=0.5 * tol, max_passes=max_passes, max_seconds=left)
    # A pass there reads rows that are n features wide: n / d of a pass here.
    family.count_rows(2.0 * family.n * (inside.passes - before) * family.n / family.d)
    left = max_seconds - (time.perf_counter() - started)
    lifted = space.lift(solution.w)
    return run(family, solver, lifted, max_passes=max_passes, max_seconds=left)
