"""A line search on logits: one pass, whatever the number of trials."""

from __future__ import annotations

from dataclasses import replace

from convexprobe.arrays.backend import Array, cast
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.solvers.base import inner

TRIALS = 10
"""Steps that a line search tries at most; they read no rows."""


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
