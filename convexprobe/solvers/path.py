"""Solve the tasks of a layer at every penalty, from large to small, a few neighbours at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from convexprobe.arrays.backend import Array
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.preconditioners import Inverse
from convexprobe.problem.row_space import (
    AT_ONCE,
    RowSpace,
    is_wide,
    row_space,
    row_space_passes,
)
from convexprobe.problem.tasks import take_tasks
from convexprobe.solvers.base import Solver
from convexprobe.solvers.early_stopping import ValidationLoss
from convexprobe.solvers.float64 import finish_in_float64
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Record, Solution, Solved, Status
from convexprobe.solvers.starts import Previous, Start, best_start
from convexprobe.solvers.walk import Trail, Walk

NEIGHBOURS = 4
"""How many penalties are solved together: neighbours share a preconditioner, distant ones do not.

See `docs/decisions/path.md`.
"""

MEMORY = 2e9
"""Bytes that the logits of tasks solved together may take; more tasks wait for their turn."""


@dataclass(frozen=True, kw_only=True)
class Fitted(Solved):
    """One task's record with its parameters `w`, `(p,)` float64, and the solver's steps."""

    w: Array
    steps: int


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


def solve_path(
    base: Problem,
    penalties: np.ndarray,
    solver: Solver,
    previous: Previous | None,
    *,
    tol: float,
    max_passes: float,
    max_seconds: float,
    max_steps: float = np.inf,
    callbacks: Sequence[Callable[[Record], None]] = (),
    stopping: ValidationLoss | None = None,
    walk: Walk | None = None,
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
        max_steps: budget of the solver's steps for each penalty.
        callbacks: called with each `Record`.
        stopping: the tasks' early stopping, instead of the certificate.
        walk: stop early on the way down, or go on below the smallest; None solves all of them.
        neighbours, memory: as in `tasks_at_once`; with a walk, penalties come one by one.

    Returns:
        For each task, its solutions: in the order of `penalties`, or of a walk from large to small.
    """
    budget = max_passes, max_seconds, max_steps
    job = _Job(base, solver, previous, tol, budget, callbacks, stopping)
    together, width = tasks_at_once(
        base.n // base.communicator.size, base.d, base.k, neighbours=neighbours, memory=memory
    )
    order = np.argsort(-penalties, kind="stable")
    solutions: list[list[Fitted]] = []
    for first in range(0, base.m, width):
        members = list(range(first, min(first + width, base.m)))
        if walk is not None:
            solutions += _walk(job, members, penalties[order].tolist(), walk)
            continue
        chunk: list[list[Fitted]] = [[] for _ in members]
        origin = None  # the members' solutions at the last penalty
        for position in range(0, len(order), together):
            values = penalties[order[position : position + together]].tolist()
            for task, found in enumerate(job.solve(members, values, origin)):
                chunk[task] += found
            origin = [found[-1].w for found in chunk]
        back = np.argsort(order, kind="stable")
        solutions += [[found[v] for v in back] for found in chunk]
    return solutions


def _walk(job: _Job, members: list[int], penalties: list[float], walk: Walk) -> list[list[Fitted]]:
    """The members' solutions on the way down."""
    trails = {walk.concept[task]: Trail() for task in members}
    solutions: dict[int, list[Fitted]] = {task: [] for task in members}
    smallest = penalties[-1]
    values = [*penalties, *(smallest * 10.0**-i for i in range(1, walk.further + 1))]
    active = members
    for value in values:
        if value < smallest:  # none of those given: only for whom it may pay
            active = [t for t in active if trails[walk.concept[t]].falls(walk.notable)]
        active = [t for t in active if not trails[walk.concept[t]].ends(walk.notable)]
        if not active:
            break
        origin = None if not solutions[active[0]] else [solutions[t][-1].w for t in active]
        losses: dict[int, list[float]] = {}
        for task, (found,) in zip(active, job.solve(active, [value], origin), strict=True):
            solutions[task].append(found)
            losses.setdefault(walk.concept[task], []).append(walk.loss(task, found))
        for concept, values_of in losses.items():
            trails[concept].losses.append(float(np.mean(values_of)))
    return [solutions[task] for task in members]


def solve_from(
    family: Problem,
    solver: Solver,
    w: Array,
    *,
    tol: float,
    max_passes: float,
    max_seconds: float,
    callbacks: Sequence[Callable[[Record], None]] = (),
) -> Solution:
    """Solve a family at its own penalties from `w`, `(m, p)`; other arguments as `solve_path`."""
    job = _Job(family, solver, None, tol, (max_passes, max_seconds, np.inf), callbacks, None)
    return job.solution(family, [*range(family.m)], w)


@dataclass(frozen=True)
class _Last:
    """Where the last solve ended: its family, the tasks by their numbers, and the evaluation."""

    family: Problem
    index: list[int]
    at: Evaluation


class _Job:
    """One path's solves, which share a clock, a row space and everything that does not change."""

    def __init__(
        self,
        base: Problem,
        solver: Solver,
        previous: Previous | None,
        tol: float,
        budget: tuple[float, float, float],
        callbacks: Sequence[Callable[[Record], None]],
        stopping: ValidationLoss | None,
    ) -> None:
        self.base, self.solver, self.previous, self.stopping = base, solver, previous, stopping
        self.tol, (self.max_passes, max_seconds, self.max_steps) = tol, budget
        self.deadline = time.perf_counter() + max_seconds
        self.callbacks, self.run = callbacks, partial(solve, tol=tol, callbacks=callbacks)
        affordable = base.n / (2.0 * base.k) < self.max_passes  # the Gram matrix's own products
        self.wide = previous is None and stopping is None and is_wide(base) and affordable
        self.space: RowSpace | None = None  # built when it pays
        self.last: _Last | None = None
        self.started = time.perf_counter()

    @property
    def left(self) -> float:
        """Seconds left, by rank 0's clock."""
        return self.base.communicator.clock(self.deadline - time.perf_counter())

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a start may overflow
    def solve(
        self, members: list[int], penalties: list[float], origin: list[Array] | None
    ) -> list[list[Fitted]]:
        """These tasks at these penalties, from the members' solutions at another, if any."""
        base, count = self.base, len(penalties)
        index = [task for task in members for _ in penalties]
        family = base.take_tasks(index, np.tile(penalties, len(members)))
        given = None
        if origin is not None:
            given = base.xp.stack([w for w in origin for _ in penalties])
        start = best_start(family, take_tasks(self.previous, index), origin=given)
        w = self._start(family, index, start)
        waited = base.communicator.clock(time.perf_counter() - self.started)
        stopping = None if self.stopping is None else self.stopping.take_tasks(index)
        solution = self.solution(family, index, w, inverse=start.inverse, stopping=stopping)
        if solution.at is not None and (family.host_l2 > 0).all():
            self.last = _Last(family, index, solution.at)
        flat = [
            Fitted(
                **solution.task(i, start=name, waited=waited).known(),
                w=solution.w[i, :],
                steps=int(solution.steps[i]),
            )
            for i, name in enumerate(start.names)
        ]
        return [flat[i * count : (i + 1) * count] for i in range(len(members))]

    def solution(
        self,
        family: Problem,
        index: list[int],
        w: Array,
        *,
        inverse: Inverse | None = None,
        stopping: ValidationLoss | None = None,
    ) -> Solution:
        """Solve a family from `w`, and go on in float64 where float32 has stalled.

        `index` has the tasks' numbers in the base. Early stopping ends where it ends.
        """
        if self.wide and (family.host_l2 > 0).all():
            solution = self._wide(family, index, w)
        else:
            solution = self.run(
                family,
                self.solver,
                w,
                max_passes=self.max_passes,
                max_seconds=self.left,
                max_steps=self.max_steps,
                inverse=inverse,
                stopping=stopping,
            )
        if stopping is not None:
            return solution
        return finish_in_float64(
            family,
            self.solver,
            solution,
            tol=self.tol,
            max_passes=self.max_passes,
            max_seconds=self.left,
            max_steps=self.max_steps,
        )

    def _start(self, family: Problem, index: list[int], start: Start) -> Array:
        """The start's parameters; where the last solve of these tasks ended, its evaluation is
        handed on. Nothing here keeps that, as its logits are most of the memory."""
        last, self.last = self.last, None
        if last is None or last.index != index or set(start.names) != {"neighbour"}:
            return start.w
        return family.start_from(last.at, last.family)

    def _wide(self, family: Problem, index: list[int], w: Array) -> Solution:
        """Wide rows as they are, for as many passes as their row space costs, if those are many;
        then inside it, and at last on the rows again. All share one budget."""
        started, before, shrunk = time.perf_counter(), family.passes, family.d / family.n
        steps = np.zeros(family.m, dtype=int)
        price = row_space_passes(family)

        def run(problem: Problem, w: Array, tol: float, most: float = np.inf) -> Solution:
            """Solve with what is left of the budget, in passes over the rows as they are."""
            passes = min(max(self.max_passes - (family.passes - before), 0.0), most)
            if problem is not family:
                passes *= shrunk
            return self.run(
                problem,
                self.solver,
                w,
                max_passes=passes,
                max_seconds=self.left,
                max_steps=self.max_steps - steps.max(),
                tol=tol,
            )

        if self.space is None and (price > AT_ONCE or price >= self.max_passes):
            solution = run(family, w, self.tol, price)
            if Status.MAX_PASSES not in solution.status or price >= self.max_passes:
                return solution
            w, steps = solution.w, solution.steps
        if self.space is None:
            self.space = row_space(self.base)
        space = self.space
        inside = space.problem.take_tasks(index, family.host_l2)
        there = inside.passes
        solution = run(inside, space.project(w), 0.5 * self.tol)
        steps = steps + solution.steps
        # A pass there reads rows that are n features wide: n / d of a pass here.
        family.count_rows(2.0 * family.n * (inside.passes - there) / shrunk)
        waited = time.perf_counter() - started
        solution = run(family, space.lift(solution.w), self.tol)
        return replace(solution, steps=steps + solution.steps, seconds=waited + solution.seconds)
