"""What a solver is, and what the solvers share: the line search and conjugate gradients.

A solver is a frozen record of hyperparameters. It sees vectors `(m, p)` and a `Problem`; it never
holds data, prints, reads a clock or tests convergence: `convexprobe.solve` does that once for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

from convexprobe._array import Array, namespace
from convexprobe.objective import Evaluation, Problem
from convexprobe.preconditioner import Inverse
from convexprobe.sample import Sample


@dataclass
class State:
    """What a solver carries from step to step; arrays have the task axis first.

    Attributes:
        at: the evaluation at the current `w`, or None if the step made none over all rows.
        sample: rows evaluated at the current `w`, or None; the certificate uses them.
        steps: steps taken; with the seed it determines every random draw.
    """

    at: Evaluation | None
    sample: Sample | None = None
    steps: int = 0


class Solver(Protocol):
    """An algorithm for a family of tasks."""

    def init(self, problem: Problem, w: Array) -> Any:
        """The state (a `State`) before the first step from `w` `(m, p)`."""

    def step(self, problem: Problem, w: Array, state: Any) -> tuple[Array, Any]:
        """One iteration, about one pass: the next `w` and its state."""


def inner(a: Array, b: Array) -> Array:
    """Inner product of each task, `(m,)`."""
    return namespace(a, b).sum(a * b, axis=1)


def merge(keep: Array, new: Evaluation, old: Evaluation) -> Evaluation:
    """Per task `(m,)`, the new evaluation where `keep`, else the old one."""
    xp = namespace(keep)
    chosen = {}
    for field in fields(Evaluation):
        a, b = getattr(new, field.name), getattr(old, field.name)
        chosen[field.name] = xp.where(keep if a.ndim == 1 else keep[:, None], a, b)
    return Evaluation(**chosen)


def line_search(
    problem: Problem, at: Evaluation, direction: Array, first: Array, *, trials: int = 12
) -> tuple[Evaluation, Array]:
    """Backtrack from `w - first * direction` to sufficient decrease; a pass a trial.

    Armijo's condition with constant 1e-4 and quadratic interpolation kept within [0.1, 0.5]. Where
    the change of value drowns in rounding, a smaller slope is accepted instead (the approximate
    Wolfe condition of Hager and Zhang 2005). A task without an acceptable trial stays where it is.

    Args:
        problem: the family.
        at: evaluation at the current point.
        direction: descent direction to subtract, `(m, p)`.
        first: first step lengths, `(m,)`.
        trials: evaluations at most.

    Returns:
        The evaluation reached and the step lengths `(m,)`, 0 for a task that stays.
    """
    xp = problem.xp
    slope = inner(at.gradient, direction)  # positive: the decrease a unit step promises
    t = first
    for _ in range(trials):
        new = problem.evaluate(at.w - t[:, None] * direction)
        enough = new.value <= at.value - 1e-4 * t * slope
        flat = xp.abs(new.value - at.value) <= at.rounding
        ok = enough | (flat & (xp.abs(inner(new.gradient, direction)) <= 0.9 * xp.abs(slope)))
        if bool(xp.all(ok)):
            return new, t
        rise = new.value - at.value + slope * t
        shorter = 0.5 * slope * t * t / xp.where(rise > 0, rise, 1.0)
        shorter = xp.where(xp.isfinite(shorter), shorter, 0.1 * t)
        t = xp.where(ok, t, xp.minimum(xp.maximum(shorter, 0.1 * t), 0.5 * t))
    return merge(ok, new, at), xp.where(ok, t, 0.0)


def conjugate_gradient(
    product: Callable[[Array], Array],
    b: Array,
    inverse: Inverse,
    *,
    tolerance: float,
    iterations: int,
) -> Array:
    """Solve `H x = b` for every task, `(m, p)`, to a relative residual in the inverse's norm.

    Each task stops on its own (its step becomes 0); all stop at a direction without curvature.
    """
    xp = namespace(b)
    x, r = xp.zeros_like(b), b
    z = inverse.solve(r)
    p, rz = z, inner(r, z)
    target = tolerance**2 * rz
    active = rz > 0
    for _ in range(iterations):
        q = product(p)
        curvature = inner(p, q)
        active = active & (curvature > 0)
        alpha = xp.where(active, rz / xp.where(active, curvature, 1.0), 0.0)[:, None]
        x, r = x + alpha * p, r - alpha * q
        z = inverse.solve(r)
        rz, last = inner(r, z), rz
        active = active & (rz > target)
        if not bool(xp.any(active)):
            break
        p = z + xp.where(active, rz / xp.where(active, last, 1.0), 0.0)[:, None] * p
    return x
