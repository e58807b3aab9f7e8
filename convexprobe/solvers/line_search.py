"""A line search that reads the rows once, whatever the number of trials.

Where the logits of all rows are kept, trials read those. Where they are not, a sample of rows finds
the step, and the evaluation at its end tells whether it serves.
"""

from __future__ import annotations

from dataclasses import replace

from convexprobe.arrays.backend import Array, beside, cast, generator, namespace
from convexprobe.problem.leading import Leading
from convexprobe.problem.objective import Evaluation, Measure, Problem
from convexprobe.problem.row_sample import draw_rows
from convexprobe.problem.softmax import ray_terms
from convexprobe.solvers.base import inner
from convexprobe.solvers.leading_step import leading_step

TRIALS = 10
"""Steps that a line search tries at most; they read no rows."""

NEWTON = 3
"""Newton's steps in a bracket at most; then it is halved, as they can be short."""

END_LEFT = 0.9
"""The fraction of its slope that a whole step may leave if it was evaluated before any search."""

READ = 5
"""Steps that a line search on a sample tries on all rows at most, a pass each."""

ROWS, CANDIDATES = 8192, 1 << 17
"""Rows of the sample that finds a step, and rows that it is drawn from at least, if there are more:
drawing from all of them would take longer than the search."""


def line_search(
    problem: Problem,
    at: Evaluation,
    direction: Array,
    *,
    slope_left: float = 0.2,
    leading: Leading | None = None,
    end_first: bool = False,
) -> tuple[Evaluation, Array]:
    """The point `w - t d` of each task with little slope left along `d`: one pass in all.

    The change of logits along `d` is half a pass, and the gradient at the end the other half. In
    between, the loss and its derivatives along the ray need no product with rows
    (`Problem.ray`). The objective is convex along the ray, so a bracketed Newton's method
    from `t = 1` finds the step. A step is taken once the slope has fallen far enough and the value
    has not risen; if values differ by rounding alone, once the slope has fallen at all (the
    approximate Wolfe condition of Hager and Zhang 2005).

    A family that keeps no logits searches on a sample of rows (`_search_on_sample`).

    Args:
        problem: the family.
        at: the evaluation at the current point; its logits are computed if it has none, and the
            family keeps them.
        direction: descent direction to subtract, `(m, p)`.
        slope_left: the fraction of its slope that a step may leave.
        leading: directions in which a step for all rows follows, before the gradient is taken.
        end_first: whether to evaluate at `t = 1` before any search: one pass if that serves, which
            touches logits half as often, and one and a half if it does not.

    Returns:
        The evaluation reached, with its logits, if the family keeps them, and the steps `(m,)`, 0
        for a task that stays.
    """
    xp = problem.xp
    direction = cast(cast(direction, problem.dtype), xp.float64)
    if at.logits is None:
        if not problem.keeps_logits:
            return _search_on_sample(problem, at, direction, slope_left)
        at = replace(at, logits=problem.logit_change(at.w) + problem.absent[:, :, None])
    slope0 = -inner(at.gradient, direction)
    end: tuple[Array, ...] | None = None
    if end_first:
        new = problem.evaluate(at.w - direction, keep=True)
        slope = -inner(new.gradient, direction)
        end = new.value, slope, slope - slope0
        if bool(xp.all(_serves(at, slope0, new.value, slope, END_LEFT))):
            return new, xp.ones_like(slope0)
        dz = new.logits
        dz -= at.logits
        dz *= -1.0
    else:
        dz = problem.logit_change(direction)

    along_ray = problem.ray(at, direction, dz)

    def measure(t: Array) -> tuple[Array, ...]:
        nonlocal end
        known, end = end, None
        return along_ray(t) if known is None else known

    t, done = _bracketed(measure, at, slope0, xp.ones_like(slope0), slope_left, TRIALS)
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


def _bracketed(
    measure: Measure, at: Evaluation, slope0: Array, t: Array, slope_left: float, trials: int
) -> tuple[Array, bool]:
    """Steps that are good enough, `(m,)`, from first trials `t`, and whether each is: else it is
    the longest that is known to be too short."""
    xp = namespace(t)
    low = xp.zeros_like(slope0)
    high = xp.full_like(slope0, xp.inf)
    for trial in range(trials):
        value, slope, curvature = measure(t)
        good = _serves(at, slope0, value, slope, slope_left)
        if done := bool(xp.all(good)):
            break
        fell, level = value <= at.value, xp.abs(value - at.value) <= at.rounding
        short = (slope <= 0) & (fell | level)
        low, high = xp.where(short, t, low), xp.where(short, high, t)
        newton = t - slope / xp.where(curvature > 0, curvature, 1.0)
        inside = (curvature > 0) & (newton > low) & (newton < high)
        if trial >= NEWTON:
            inside = inside & (high == xp.inf)
        middle = xp.where(low > 0, 0.5 * (low + high), 0.1 * high)
        limit = xp.where(high < xp.inf, middle, 4.0 * t)
        better = xp.where(inside, xp.minimum(newton, 4.0 * t), limit)
        t = xp.where(good, t, better)
    return xp.where(good, t, low), done


def _serves(at: Evaluation, slope0: Array, value: Array, slope: Array, slope_left: float) -> Array:
    """Whether a step with this value and slope is good enough, `(m,)`: see `line_search`."""
    fell, level = value <= at.value, abs(value - at.value) <= at.rounding
    small, steep = abs(slope), abs(slope0)
    return (fell & (small <= slope_left * steep)) | (level & (small <= 0.9 * steep))


def _search_on_sample(
    problem: Problem, at: Evaluation, direction: Array, slope_left: float
) -> tuple[Evaluation, Array]:
    """A line search without the logits of all rows: a pass for each step that is tried on them.

    A sample of rows tells how the loss bends along the ray, and the gradient at its start how steep
    it is there:

        F(w - t d) ~ F(w) + t F'(0) + [f(t) - f(0) - t f'(0)],

    with `f` the objective on the sample. A search on that model finds the step, and an evaluation
    there, which is wanted anyway, tells whether it is good on all rows. If not, its slope and the
    sample's curvature lead to the next.
    """
    xp = problem.xp
    slope0 = -inner(at.gradient, direction)
    moves = (slope0 < 0) & (slope0 > -xp.inf)  # not of a direction that is not finite
    direction = xp.where(moves[:, None], direction, 0.0)
    slope0 = xp.where(moves, slope0, 0.0)
    along_sample = _sampled_ray(problem, at, direction)
    zero = xp.zeros_like(slope0)
    value_there, slope_there, _ = along_sample(zero)

    def model(t: Array) -> tuple[Array, ...]:
        value, slope, curvature = along_sample(t)
        bend = slope0 - slope_there
        return at.value + (value - value_there) + t * bend, slope + bend, curvature

    # Half of what a step may leave: the model is off by some of it.
    t, _ = _bracketed(model, at, slope0, zero + 1.0, 0.5 * slope_left, TRIALS)
    reached, tried = at, zero

    def measure(t: Array) -> tuple[Array, ...]:
        nonlocal reached, tried
        reached, tried = problem.evaluate(at.w - t[:, None] * direction), t
        return reached.value, -inner(reached.gradient, direction), along_sample(t)[2]

    t, _ = _bracketed(measure, at, slope0, xp.where(t > 0, t, 1.0), slope_left, READ)
    if bool(xp.any(t != tried)):
        reached = problem.evaluate(at.w - t[:, None] * direction)
    return reached, xp.where(moves, t, 0.0)


def _sampled_ray(problem: Problem, at: Evaluation, direction: Array) -> Measure:
    """The objective along a ray as a sample of rows has it, drawn where the curvature is."""
    xp, every = problem.xp, max(1, problem.n // CANDIDATES)
    weights = None if problem.weights is None else problem.weights[:, ::every]
    size = min(ROWS, problem.capacity)
    index, inverse_probability = draw_rows(
        at.uncertainty[:, ::every], weights, size, generator(0), problem.communicator
    )
    index = index * every
    x, labels = problem.rows.take(index), problem.labels_at(index)
    z, dz = problem.logits(at.w, x), problem.directions(direction, x)
    share = problem.weights_at(index) * cast(beside(inverse_probability, x), problem.dtype)
    (total,) = problem.all_reduce(xp.sum(share, axis=1, dtype=xp.float64))
    total, penalty = xp.where(total > 0, total, 1.0), problem.penalty_along(at.w, direction)

    def measure(t: Array) -> tuple[Array, ...]:
        terms = ray_terms(z, dz, t, labels)
        sums = [xp.sum(rows * share, axis=1, dtype=xp.float64) for rows in terms]
        means = [each / total for each in problem.all_reduce(*sums)]
        return tuple(mean + own for mean, own in zip(means, penalty(t), strict=True))

    return measure
