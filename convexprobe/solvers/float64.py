"""Go on in float64 where float32 has stalled: the rows stay as they are kept."""

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
from convexprobe.solvers.solution import Record, Solution, Status


def finish_in_float64(
    family: Problem,
    solver: Solver,
    solution: Solution,
    *,
    tol: float,
    max_passes: float,
    max_seconds: float,
    callbacks: Sequence[Callable[[Record], None]] = (),
) -> Solution:
    """The solution, with the tasks that rounding stopped solved further in float64.

    Parameters are handed out in the family's dtype, so the point reached is rounded to it, and the
    objective and gap are those of the rounded point.
    """
    f64 = family.xp.float64
    stalled = [i for i, status in enumerate(solution.status) if status is Status.ROUNDING]
    if not stalled or family.dtype == f64:
        return solution
    part = family.take_tasks(stalled)
    wide = Problem(
        Widened(part.rows),
        part.labels,
        part.host_l2,
        classes=part.k,
        weights=part.weights,
        communicator=part.communicator,
    )
    start = family.xp.stack([solution.w[i, :] for i in stalled])
    further = solve(
        wide,
        solver,
        start,
        tol=0.5 * tol,
        max_passes=max_passes,
        max_seconds=max_seconds,
        callbacks=callbacks,
    )
    rounded = cast(cast(further.w, family.dtype), f64)
    at = wide.evaluate(rounded)
    errors = wide.errors(rounded)
    family.count_rows(2.0 * family.rows.n * wide.passes)
    objective, loss = to_numpy(at.value), to_numpy(at.loss)
    gap = objective - (further.objective - further.gap) + to_numpy(at.rounding)
    w = [solution.w[i, :] for i in range(family.m)]
    arrays: dict[str, Any] = {
        name: np.array(getattr(solution, name))
        for name in ("loss", "objective", "gap", "train_error", "passes", "seconds")
    }
    statuses = list(solution.status)
    for j, i in enumerate(stalled):
        if gap[j] >= arrays["gap"][i]:
            continue
        w[i] = rounded[j, :]
        arrays["loss"][i], arrays["objective"][i] = loss[j], objective[j]
        arrays["gap"][i], arrays["train_error"][i] = max(gap[j], 0.0), errors[j]
        met = gap[j] <= tol * family.label_entropy[i]
        statuses[i] = Status.CERTIFIED if met else further.status[j]
        if statuses[i] is Status.CERTIFIED and not met:
            statuses[i] = Status.ROUNDING
    for i in stalled:
        arrays["passes"][i] = family.passes
        arrays["seconds"][i] += further.seconds.max()
    return replace(solution, w=family.xp.stack(w), status=tuple(statuses), **arrays)
