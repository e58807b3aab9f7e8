"""What a solver is, and what the solvers share: the line search and conjugate gradients.

A solver is a frozen record of hyperparameters. It sees vectors `(m, p)` and a `Problem`; it never
holds data, prints, reads a clock or tests convergence: `convexprobe.solve` does that once for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from convexprobe._array import Array, cast, namespace
from convexprobe.objective import Evaluation, Problem
from convexprobe.preconditioner import Inverse
from convexprobe.sample import Sample

TRIALS = 10
"""Steps that a line search tries at most; they read no rows."""

STALE = 0.6
"""What is left of a loss when the curvature where it was higher no longer serves."""


@dataclass
class State:
    """What a solver carries from step to step; arrays have the task axis first.

    Attributes:
        at: the evaluation at the current `w`, or None if the step made none over all rows.
        sample: rows evaluated at the current `w`, or None; the certificate uses them.
        steps: steps taken; with the seed it determines every random draw.
        inverse: a preconditioner for points near `w`, or None where there is none yet.
        built: the loss where it was built, `(m,)`.
    """

    at: Evaluation | None
    sample: Sample | None = None
    steps: int = 0
    inverse: Inverse | None = None
    built: Array = None


class Solver(Protocol):
    """An algorithm for a family of tasks."""

    def init(self, problem: Problem, w: Array) -> Any:
        """The state (a `State`) before the first step from `w` `(m, p)`."""

    def step(self, problem: Problem, w: Array, state: Any) -> tuple[Array, Any]:
        """One iteration, about one pass: the next `w` and its state."""


def fresh_inverse(state: State, build: Callable[[], Inverse]) -> tuple[Inverse, Array]:
    """The state's preconditioner and the loss where it was built; a new one, at the current point,
    where there is none or a task's loss has fallen below `STALE` of what it was there."""
    assert state.at is not None
    loss = state.at.loss
    if state.inverse is None or bool(namespace(loss).any(loss < STALE * state.built)):
        return build(), loss
    return state.inverse, state.built


def inner(a: Array, b: Array) -> Array:
    """Inner product of each task, `(m,)`."""
    return namespace(a, b).sum(a * b, axis=1)


def line_search(problem: Problem, at: Evaluation, direction: Array) -> tuple[Evaluation, Array]:
    """The point `w - t d` of each task with almost no slope left along `d`: one pass in all.

    `d`'s share of the logits is half a pass; along the ray the loss and its derivatives cost no
    product with the rows (`Problem.along`); gathering the gradient at the end is the other half.
    The objective is convex along the ray, so that Newton's method in `t` from 1, bracketed, finds
    the step. It is taken when the slope has fallen to a fifth and the value has not risen, or where
    values differ by rounding alone, when the slope has fallen at all (the approximate Wolfe
    condition of Hager and Zhang 2005).

    Args:
        problem: the family.
        at: evaluation at the current point, with its logits; they are computed if it has none.
        direction: descent direction to subtract, `(m, p)`.

    Returns:
        The evaluation reached, with its logits, and the steps `(m,)`, 0 for a task that stays.
    """
    xp = problem.xp
    if at.logits is None:
        at = replace(at, logits=problem.spread(at.w) + problem.absent[:, :, None])
    direction = cast(cast(direction, problem.dtype), xp.float64)
    dz = problem.spread(direction)
    slope0 = -inner(at.gradient, direction)
    low = xp.zeros_like(slope0)
    high = xp.full_like(slope0, xp.inf)
    t = xp.ones_like(slope0)
    for _ in range(TRIALS):
        value, slope, curvature = problem.along(at, direction, dz, t)
        fell = value <= at.value
        level = xp.abs(value - at.value) <= at.rounding
        small = xp.abs(slope)
        good = (fell & (small <= 0.2 * xp.abs(slope0))) | (level & (small <= 0.9 * xp.abs(slope0)))
        if bool(xp.all(good)):
            break
        short = (slope <= 0) & (fell | level)
        low, high = xp.where(short, t, low), xp.where(short, high, t)
        newton = t - slope / xp.where(curvature > 0, curvature, 1.0)
        inside = (curvature > 0) & (newton > low) & (newton < high)
        middle = xp.where(low > 0, 0.5 * (low + high), 0.1 * high)
        limit = xp.where(high < xp.inf, middle, 4.0 * t)
        better = xp.where(inside, xp.minimum(newton, 4.0 * t), limit)
        t = xp.where(good, t, better)
    t = xp.where(good, t, low)
    moves = t > 0  # a task that stays may have an overflowed direction: 0 times it is NaN
    direction = xp.where(moves[:, None], direction, 0.0)
    dz = xp.where(moves[:, None, None], dz, 0.0)
    w = at.w - t[:, None] * direction
    dz *= -cast(t, dz.dtype)[:, None, None]  # in place: arrays of this size decide the memory
    dz += at.logits
    return problem.evaluate(w, logits=dz), t


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
