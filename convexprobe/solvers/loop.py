"""The one loop: clock, budget, certificate, record, callbacks, stopping."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from convexprobe.arrays.backend import Array, cast
from convexprobe.arrays.threads import numpy_on_one_thread
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.preconditioners import Inverse
from convexprobe.problem.tasks import take_tasks
from convexprobe.solvers.base import Solver
from convexprobe.solvers.certifier import lower_bounds, read
from convexprobe.solvers.solution import Record, Solution, Status

STALLED_STEPS = 8
"""Quiet steps in a row (see `_Best.update`) after which rounding has ended progress."""

CLOSE = 1e-5
"""Rounding of a value, relative to the label entropy, up to which the logits that a line search
kept stand for those of the parameters that are handed out."""

STACKED = 1 << 24
"""Logits up to which those of several tasks are copied together for that; more are made again."""

PATIENCE = 5
"""Evaluations in a row without a lower validation loss after which a task stops early."""


_Solve = TypeVar("_Solve", bound=Callable[..., Solution])


class _Best:
    """Each task's point of lowest score (`F`, or what stopping watches) and highest bound."""

    def __init__(self, problem: Problem, w: Array) -> None:
        m = problem.m
        self.w = [w[t, :] for t in range(m)]
        self.at: list[tuple[Evaluation, int] | None] = [None] * m  # evaluation, position in it
        self.objective = np.full(m, np.inf)
        self.rounding, self.bound, self.doubt = np.zeros(m), np.zeros(m), np.zeros(m)
        self.score, self.last = np.full(m, np.inf), np.full(m, np.inf)
        self.moved = np.zeros(m, dtype=bool)  # whether the start has weights that are not zero
        self.stale = np.zeros(m, dtype=int)  # evaluations in a row without a lower score
        self.quiet = np.zeros(m, dtype=int)  # quiet steps in a row

    def update(
        self,
        tasks: list[int],
        at: Evaluation,
        bound: np.ndarray,
        notable: np.ndarray,
        score: np.ndarray,
    ) -> None:
        """Take in the evaluation, lower bounds and scores of these tasks.

        A step is quiet if the value moved by less than is `notable` or than a tenth of its rounding
        allowance, and the gap fell by less than a hundredth.
        """
        before = self.gap[tasks]
        assert at.host is not None
        for i, t in enumerate(tasks):
            value, rounding = float(at.host.value[i]), float(at.host.rounding[i])
            # The allowance covers a systematic error: between steps values agree far better.
            moved = abs(value - self.last[t]) > max(0.1 * rounding, notable[i])
            self.quiet[t] = 0 if moved else self.quiet[t] + 1
            self.last[t] = value
            self.stale[t] += 1
            if score[i] < self.score[t]:
                self.score[t], self.stale[t] = score[i], 0
                self.w[t], self.objective[t], self.rounding[t] = at.w[i, :], value, rounding
                self.at[t] = at, i
            if bound[i] > self.bound[t]:
                self.bound[t], self.doubt[t] = bound[i], float(at.host.doubt[i])
        self.quiet[tasks] *= ~(self.gap[tasks] < 0.99 * before)

    @property
    def logits(self) -> list[Array]:
        """Each task's logits `(k, n)` at its point, where an evaluation kept them; else None."""
        kept = [(None, 0) if found is None else (found[0].logits, found[1]) for found in self.at]
        return [None if logits is None else logits[i, :, :] for logits, i in kept]

    @property
    def whole(self) -> Evaluation | None:
        """The evaluation of all tasks at their points, if they share one."""
        at = None if self.at[0] is None else self.at[0][0]
        whole = all(found is not None and found[0] is at for found in self.at)
        return at if whole and at is not None and at.w.shape[0] == len(self.at) else None

    @property
    def gap(self) -> np.ndarray:
        """Value less bound, `(m,)`, and what rounding may have taken from it.

        A gradient off by `e` raises `||r||^2 / (2 l2)` to `(||r|| + ||e||)^2 / (2 l2)` at most.
        """
        gap = np.maximum(self.objective - self.bound, 0.0)
        return (np.sqrt(gap) + np.sqrt(self.doubt)) ** 2 + self.rounding


class OutOfTime(Exception):
    """The time ran out in the middle of a step."""


@contextmanager
def _watched(problem: Problem, deadline: float) -> Iterator[None]:
    """Raise `OutOfTime` at the first product with rows after the deadline.

    Over ranks a step goes on to its end: one that stopped would leave the others waiting.
    """

    def look() -> None:
        if time.perf_counter() > deadline:
            raise OutOfTime

    alone = problem.communicator.process_group is None
    problem.watch(look if alone and np.isfinite(deadline) else None)
    try:
        yield
    finally:
        problem.watch(None)


def _raised_together(solve: _Solve) -> _Solve:
    """If any rank raises in a solve, every rank raises."""

    @wraps(solve)
    def raised(problem: Problem, *args: Any, **settings: Any) -> Solution:
        with problem.communicator.raise_together():
            return solve(problem, *args, **settings)

    return raised  # type: ignore[return-value]  # of the same signature


@_raised_together
@numpy_on_one_thread()
@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a trial may overflow: refused
def solve(
    problem: Problem,
    solver: Solver,
    w: Array | None = None,
    *,
    tol: float = 1e-3,
    max_passes: float = 1000.0,
    max_seconds: float = np.inf,
    max_steps: float = np.inf,
    callbacks: Sequence[Callable[[Record], None]] = (),
    state: Any = None,
    inverse: Inverse | None = None,
    stopping: Callable[[Array], np.ndarray] | None = None,
) -> Solution:
    """Run a solver on every task of a family until each is certified or a budget is spent.

    A task leaves the work when its gap is at most `tol * H(Y)`. A spent budget is a status with a
    gap, never an exception.

    Args:
        problem: the family.
        solver: the algorithm.
        w: where to start, `(m, p)`; None for the best constant classifier.
        tol: relative tolerance.
        max_passes: budget of passes of this call.
        max_seconds: budget of seconds of this call.
        max_steps: budget of the solver's steps of this call.
        callbacks: called with each `Record`.
        state: a previous solution's state, to resume the same problem instead of starting.
        inverse: a preconditioner for points near `w`, or None.
        stopping: for early stopping, `w` `(m, p)` -> losses to watch, host `(m,)`; a `PerTask` if
            tasks may end one by one. A task then ends at the point of its lowest loss, once that
            has not fallen for `PATIENCE` evaluations, or at a gap of `tol / 100`.

    Returns:
        The solution, with the best point seen for each task.
    """
    started, before = time.perf_counter(), problem.passes
    if w is None:
        w = problem.constant_classifier() if state is None or state.at is None else state.at.w
    target = (tol if stopping is None else 1e-2 * tol) * problem.label_entropy
    best = _Best(problem, w)
    status: list[Status | None] = [None] * problem.m
    reach = np.full(problem.m, np.inf)  # estimated gaps up to which a bound is bought
    passes, seconds = np.zeros(problem.m), np.zeros(problem.m)
    steps = np.zeros(problem.m, dtype=int)
    history: list[Record] = []
    active, family = list(range(problem.m)), problem
    state = solver.init(family, w) if state is None else state
    if inverse is not None:
        state = replace(state, inverse=inverse)
    step = 0
    while True:
        at = state.at if state.at is not None else family.evaluate(w)
        if step == 0:
            weights, _ = family.split(w)
            at, (moved,) = read(family, at, family.xp.any(weights != 0, axis=(1, 2)))
            best.moved = moved > 0
        elif at.host is None:
            at, _ = read(family, at)
        state = replace(state, at=at) if state.at is not None else state
        assert at.host is not None  # the device has done its work: a clock can be read
        unpenalised = family.host_l2 == 0
        notable = np.where(unpenalised, 1e-2 * target[active], 0.0)
        elapsed = problem.communicator.clock(time.perf_counter() - started)
        spent = problem.passes
        last = step == 0 or elapsed >= max_seconds or spent - before >= max_passes
        last = last or step >= max_steps
        last = last or bool((best.quiet[active] >= STALLED_STEPS - 1).any())
        within = reach[active]
        bound = lower_bounds(family, at, state.sample, target[active], step, last, within)
        reach[active] = within
        score = at.host.value if stopping is None else stopping(at.w)
        best.update(active, at, bound, notable, score)
        history.append(Record(step, spent, elapsed, best.objective.copy(), best.gap))
        for callback in callbacks:
            callback(history[-1])

        keep = []
        for i, task in enumerate(active):
            start = step == 0 and not best.moved[task] and best.gap[task] > 1e-3 * target[task]
            if best.gap[task] <= target[task] and not start:
                status[task] = Status.CERTIFIED
            elif stopping is not None and best.stale[task] >= PATIENCE:
                status[task] = Status.VALIDATION
            elif best.quiet[task] >= STALLED_STEPS:
                status[task] = Status.UNCERTIFIED if unpenalised[i] else Status.ROUNDING
            elif spent - before >= max_passes:
                status[task] = Status.MAX_PASSES
            elif step >= max_steps:
                status[task] = Status.MAX_STEPS
            elif elapsed >= max_seconds:
                status[task] = Status.MAX_SECONDS
            if status[task] in (None, Status.MAX_PASSES, Status.MAX_STEPS, Status.MAX_SECONDS):
                keep.append(i)
            passes[task], seconds[task], steps[task] = spent, elapsed, step
        if len(keep) < len(active):
            active = [active[i] for i in keep]
        if active and len(active) < family.m:
            family, state = family.take_tasks(keep), take_tasks(state, keep)
            w, stopping = take_tasks(w, keep), take_tasks(stopping, keep)
        if not any(status[t] is None for t in active):
            break
        try:
            with _watched(problem, started + max_seconds):
                w, state = solver.step(family, w, state)
        except OutOfTime:
            max_seconds = 0.0  # the point before the step stands
        step += 1

    # What is reported is of the parameters as they are handed out, in the problem's dtype.
    points = cast(cast(problem.xp.stack(best.w), problem.dtype), problem.xp.float64)
    kept = best.logits
    known = all(z is not None for z in kept)
    close = known and (best.rounding <= CLOSE * problem.label_entropy).all()
    logits = None
    if close and problem.m == 1:
        logits = kept[0][None, :, :]
    elif close and problem.m * problem.k * problem.rows.n <= STACKED:
        logits = problem.xp.stack(kept)
    loss, objective, errors = problem.judge(points, logits)
    gap = best.gap + np.fmax(objective - best.objective, 0.0)
    for t in range(problem.m):
        if status[t] is Status.CERTIFIED and gap[t] > target[t]:
            status[t] = Status.ROUNDING
        if problem.host_l2[t] == 0 and errors[t] == 0:
            status[t] = Status.SEPARABLE
    return Solution(
        w=points,
        l2=problem.host_l2.copy(),
        loss=loss,
        objective=objective,
        gap=gap,
        label_entropy=problem.label_entropy.copy(),
        train_error=errors,
        status=tuple(s for s in status if s is not None),
        passes=passes,
        seconds=seconds,
        steps=steps,
        history=tuple(history),
        state=state if active else None,
        running=tuple(active),
        at=best.whole,
    )
