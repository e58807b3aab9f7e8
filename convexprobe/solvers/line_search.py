"""A line search on logits: one pass, whatever the number of trials."""

from __future__ import annotations

from dataclasses import replace

from convexprobe.arrays.backend import Array, cast
from convexprobe.problem.leading import Leading
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.solvers.base import inner
from convexprobe.solvers.leading_step import leading_step

TRIALS = 10
"""Steps that a line search tries at most; they read no rows."""


def line_search(
    problem: Problem,
    at: Evaluation,
    direction: Array,
    *,
    slope_left: float = 0.2,
    leading: Leading | None = None,
) -> tuple[Evaluation, Array]:
    """The point `w - t d` of each task with little slope left along `d`: one pass in all.

    The change of logits along `d` is half a pass, and the gradient at the end the other half. In
    between, the loss and its derivatives along the ray need no product with rows
    (`Problem.along_ray`). The objective is convex along the ray, so a bracketed Newton's method
    from `t = 1` finds the step. A step is taken once the slope has fallen far enough and the value
    has not risen; if values differ by rounding alone, once the slope has fallen at all (the
    approximate Wolfe condition of Hager and Zhang 2005).

    Args:
        problem: the family.
        at: the evaluation at the current point; its logits are computed if it has none.
        direction: descent direction to subtract, `(m, p)`.
        slope_left: the fraction of its slope that a step may leave.
        leading: directions in which a step for all rows follows, before the gradient is taken.

    Returns:
        The evaluation reached, with its logits, and the steps `(m,)`, 0 for a task that stays.
    """
    xp = problem.xp
    if at.logits is None:
        at = replace(at, logits=problem.logit_change(at.w) + problem.absent[:, :, None])
    direction = cast(cast(direction, problem.dtype), xp.float64)
    dz = problem.logit_change(direction)
    slope0 = -inner(at.gradient, direction)
    low = xp.zeros_like(slope0)
    high = xp.full_like(slope0, xp.inf)
    t = xp.ones_like(slope0)
    for _ in range(TRIALS):
        value, slope, curvature = problem.along_ray(at, direction, dz, t)
        fell = value <= at.value
        level = xp.abs(value - at.value) <= at.rounding
        small = xp.abs(slope)
        good = (fell & (small <= slope_left * xp.abs(slope0))) | (
            level & (small <= 0.9 * xp.abs(slope0))
        )
        if done := bool(xp.all(good)):
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
    if not done:  # a task may stay; its direction may be infinite, and 0 times it is NaN
        moves = t > 0
        direction = xp.where(moves[:, None], direction, 0.0)
        dz = xp.where(moves[:, None, None], dz, 0.0)
    w = at.w - t[:, None] * direction
    dz *= -cast(t, dz.dtype)[:, None, None]  # in place, as logits are most of the memory
    dz += at.logits
    if leading is None:
        return problem.evaluate(w, logits=dz), t
    new = problem.evaluate(w - leading_step(problem, leading, w, dz), logits=dz)
    if not bool(xp.all(new.value <= at.value + at.rounding)):  # also a NaN: its model broke down
        new = problem.evaluate(w, keep=True)
    return new, t
