"""When a lower bound is worth its price: the loop's bounds, from free to bought.

`problem.certificate` has both. The free one comes with every evaluation near the goal. A repair
multiplies a sample once: it is paid for once its estimated gap is within the target.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convexprobe.arrays.backend import Array, generator, on_cpu, to_numpy, to_numpy_together
from convexprobe.problem.certificate import DENSE, estimated_gap, lower_bound
from convexprobe.problem.objective import Evaluation, HostNumbers, Problem
from convexprobe.problem.row_sample import Sample

REACH = 200.0
"""How many targets the estimated gap may be for a bound to be computed at all."""


def read(family: Problem, at: Evaluation, *more: Array) -> tuple[Evaluation, list[np.ndarray]]:
    """The evaluation with its numbers on the host, and more numbers `(m,)`, for one wait.

    Args:
        family: the tasks at work.
        at: their evaluation.
        more: what else a decision needs.
    """
    numbers = [at.value, at.loss, at.rounding, at.doubt]
    numbers.append(estimated_gap(family, at.gradient, at.value))
    if not on_cpu(at.value):  # to compute a bound takes less time there than to wait for it
        numbers.append(lower_bound(family, at))
    found = to_numpy_together(*numbers, *more)
    own, rest = found[: len(numbers)], found[len(numbers) :]
    value, loss, rounding, doubt, hope, *bound = own
    host = HostNumbers(value, loss, rounding, doubt, hope, bound[0] if bound else None)
    return replace(at, host=host), rest


def lower_bounds(
    family: Problem,
    at: Evaluation,
    sample: Sample | None,
    target: np.ndarray,
    step: int,
    last: bool,
    reach: np.ndarray | None = None,
) -> np.ndarray:
    """Lower bounds in nats, host `(m,)`; 0 where none is worth its price.

    Args:
        family: the tasks at work.
        at: their evaluation.
        sample: rows at that point, or None to draw them if they are needed.
        target: gaps to reach, nats, host `(m,)`.
        step: of the loop; seeds the draw.
        last: whether a bound is wanted however far it is: at the start, and where a budget or
            rounding is about to end a task.
        reach: estimated gaps up to which a repair is tried, nats, host `(m,)`; lowered where one
            failed, to where it will not if the gap stays as many times the estimate. None for the
            targets.
    """
    if at.host is None:
        at, _ = read(family, at)
    assert at.host is not None
    value, hope = at.host.value, at.host.estimated_gap
    target = np.maximum(target, at.host.rounding)  # no gap is below that
    if not (last or (hope <= REACH * target).any()):
        return np.zeros(family.m)  # no loss is negative
    bound = to_numpy(lower_bound(family, at)) if at.host.bound is None else at.host.bound
    hopeful = hope <= (target if reach is None else np.minimum(reach, target))
    near = (value - bound > target) & hopeful & (family.host_l2 > 0)
    if not (near.any() and family.bias):  # without biases there is nothing to repair
        return bound
    if sample is None or not sample.rows:  # a draw of few rows may be empty
        size = min(max(2500, family.n // 20), family.n)
        sample = Sample.draw(family, at, size, generator(step))
    bound = np.maximum(bound, to_numpy(lower_bound(family, at, sample)))
    if reach is not None and family.k > DENSE:  # a repair with few classes costs next to nothing
        gap = np.maximum(value - bound, 1e-300)
        reach[near] = np.minimum(hope * target / gap, reach)[near]
    return bound
