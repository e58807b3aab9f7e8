"""When a lower bound is worth its price: the loop's bounds, from free to bought.

`problem.certificate` has the three bounds. The free one comes with every evaluation near the goal.
A repair is paid for once its estimated gap is within the target. A correction takes the `v` that
solves `(M + l2) v = grad F`, with `M` the curvature of the sample's rows alone: if it leaves the
gradient `r`, then

    F - D(Q) = ||r||^2 / (2 l2) + (1/S) sum_i s_i KL(Q_i || P_i),

which at the solution is `grad F^T (M + l2)^-1 grad F / 2` to second order: the Newton decrement of
the rows that moved, where the other bounds weigh the whole gradient by `1 / l2`. Conjugate
gradients find `v`; each iteration multiplies the sample once. They may take a third of the passes
made since the last correction, so that all corrections cost at most a quarter of a solve, and begin
when that pays for `FEWEST` iterations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from convexprobe.arrays.backend import Array, generator, to_numpy
from convexprobe.problem.certificate import corrected_bound, estimated_gap, lower_bound
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.preconditioners import Inverse
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers.base import inner
from convexprobe.solvers.conjugate_gradient import conjugate_gradient

REACH = 200.0
"""How many targets the estimated gap may be for a bound to be computed at all."""

FEWEST, MOST = 4, 30
"""Conjugate gradient iterations of a correction, at least and at most."""


@dataclass
class Certifier:
    """Lower bounds of a family while it is solved; `tried`: passes after the last correction."""

    tried: float = 0.0

    def __call__(
        self,
        family: Problem,
        at: Evaluation,
        sample: Sample | None,
        inverse: Inverse | None,
        target: np.ndarray,
        step: int,
        last: bool,
    ) -> np.ndarray:
        """Lower bounds in nats, host `(m,)`; 0 where none is worth its price.

        Args:
            family: the tasks at work.
            at: their evaluation.
            sample: rows at that point, or None to draw them if they are needed.
            inverse: a preconditioner for points nearby, or None: then nothing is corrected.
            target: gaps to reach, nats, host `(m,)`.
            step: of the loop; seeds the draw.
            last: whether a bound is wanted however far it is: at the start, and where a budget or
                rounding is about to end a task.
        """
        value, hope = to_numpy(at.value), to_numpy(estimated_gap(family, at.gradient, at.value))
        target = np.maximum(target, to_numpy(at.rounding))  # no gap is below that
        if not (last or (hope <= REACH * target).any()):
            return np.zeros(family.m)  # no loss is negative
        bound = to_numpy(lower_bound(family, at))
        open_ = (value - bound > target) & (hope <= REACH * target) & (family.host_l2 > 0)
        if not open_.any():
            return bound
        if sample is not None and not sample.rows:  # a draw of few rows may be empty
            sample = None
        near = open_ & (hope <= target)
        size = family.n if sample is None else sample.rows
        size = min(max(2500, family.n // 20), size)
        iterations = int((family.passes - self.tried) / 3.0 * family.n / size)
        correct = inverse is not None and iterations >= FEWEST
        if not (near.any() or correct):
            return bound
        if sample is None:
            sample = Sample.draw(family, at, size, generator(step))
        if near.any():
            bound = np.maximum(bound, to_numpy(lower_bound(family, at, sample)))
        if correct and (value - bound > target).any():
            assert inverse is not None
            v = _correction(family, at, sample, inverse, target, min(iterations, MOST))
            bound = np.maximum(bound, to_numpy(corrected_bound(family, at, sample, v)))
            self.tried = family.passes
        return bound


def _correction(
    family: Problem,
    at: Evaluation,
    sample: Sample,
    inverse: Inverse,
    target: np.ndarray,
    iterations: int,
) -> Array:
    """The iterate `v` `(m, p)` of smallest estimated gap; see the module."""
    xp, g = family.xp, at.gradient
    own = replace(sample, inverse_probability=xp.ones_like(sample.inverse_probability))
    limit = xp.asarray(0.5 * target, device=g.device)
    best, lowest, since = xp.zeros_like(g), xp.full_like(limit, xp.inf), 0

    def enough(v: Array, r: Array) -> bool:
        """Keep the better iterate; stop at half the target, or after 8 of little gain."""
        nonlocal best, lowest, since
        gap = 0.5 * inner(g, v) + 0.5 * inner(r, v) + estimated_gap(family, r, xp.inf)
        since = 0 if bool(xp.any(gap < 0.9 * lowest)) else since + 1
        better = gap < lowest
        best, lowest = xp.where(better[:, None], v, best), xp.where(better, gap, lowest)
        return bool(xp.all(lowest <= limit)) or since >= 8

    conjugate_gradient(
        own.curvature, g, inverse, tolerance=0.0, iterations=iterations, enough=enough
    )
    return best
