"""Go on in float64 where float32 has stalled; the rows stay as they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from convexprobe.activations.widened import Widened
from convexprobe.arrays.backend import cast, to_numpy
from convexprobe.problem.objective import Problem
from convexprobe.solvers.base import Solver
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import NUMBERS, Record, Solution, Status


def finish_in_float64(
    family: Problem,
    solver: Solver,
    solution: Solution,
    *,
    tol: float,
    max_passes: float,
    max_seconds: float,
    max_steps: float = np.inf,
    callbacks: Sequence[Callable[[Record], None]] = (),
) -> Solution:
    """The solution, after the tasks that rounding stopped were solved further in float64.

    Parameters are handed out in the family's dtype: the point reached is rounded to it, and the
    objective and gap are those of the rounded point.
    """
    xp = family.xp
    stalled = [i for i, status in enumerate(solution.status) if status is Status.ROUNDING]
    if not stalled or family.dtype == xp.float64:
        return solution
    part = family.take_tasks(stalled)
    wide = part.on_rows(Widened(part.rows))
    start = xp.stack([solution.w[i, :] for i in stalled])
    further = solve(
        wide,
        solver,
        start,
        tol=0.5 * tol,
        max_passes=max_passes,
        max_seconds=max_seconds,
        max_steps=max_steps - solution.steps[stalled].max(),
        callbacks=callbacks,
    )
    at = wide.evaluate(cast(cast(further.w, family.dtype), xp.float64))
    errors = wide.errors(at.w)
    family.count_rows(2.0 * family.rows.n * wide.passes)
    objective, loss = to_numpy(at.value), to_numpy(at.loss)
    gap = objective - (further.objective - further.gap) + to_numpy(at.rounding)
    w, statuses = [solution.w[i, :] for i in range(family.m)], list(solution.status)
    steps = solution.steps.copy()
    numbers: dict[str, Any] = {name: np.array(getattr(solution, name)) for name in NUMBERS}
    for j, i in enumerate(stalled):
        steps[i] += further.steps[j]
        numbers["passes"][i] = family.passes
        numbers["seconds"][i] += further.seconds.max()
        if gap[j] >= numbers["gap"][i]:
            continue
        w[i] = at.w[j, :]
        reached = (loss[j], objective[j], max(gap[j], 0.0), errors[j])
        for name, value in zip(NUMBERS, reached, strict=False):
            numbers[name][i] = value
        statuses[i] = further.status[j]
        if gap[j] <= tol * family.label_entropy[i]:
            statuses[i] = Status.CERTIFIED
        elif statuses[i] is Status.CERTIFIED:  # of the point before it was rounded
            statuses[i] = Status.ROUNDING
    return replace(solution, w=xp.stack(w), status=tuple(statuses), steps=steps, at=None, **numbers)
