"""When a bound is worth its price: the loop's lower bounds, from free to bought.

Three lower bounds on the optimum, each at least as tight as the one before and dearer:

1. free, from the sums of the evaluation (`problem.certificate.lower_bound`);
2. repaired on a sample of rows, so that the mean condition of the free bias holds;
3. corrected on that sample: its rows move from `P_i` to `Q_i = P_i - J_i (V x_i + c)`, where `v`
   solves `(M + l2) v = grad F` with `M` the curvature of those rows alone.

Any distributions `Q_i` give a bound; with `r` the gradient that they leave and `KL` their distance,

    F - D(Q) = ||r||^2 / (2 l2) + (1/S) sum_i s_i KL(Q_i || P_i),

and at the solution of that system this is `grad F^T (M + l2)^-1 grad F / 2`, to second order:
the Newton decrement of the rows that moved, where the first two weigh the whole gradient by `1/l2`.
Conjugate gradients on the sample find `v`; an iteration costs as many rows as the sample has.

A trial of the third may cost a third of the passes made since the last one, so that all of them
cost at most a quarter of a solve, and is only made if that pays for `FEWEST` iterations.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convexprobe.arrays.backend import Array, generator, to_numpy
from convexprobe.problem.certificate import corrected_bound, estimated_gap, lower_bound
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.preconditioners import Inverse
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers.base import inner

REACH = 200.0
"""Times the target that the repaired gap may be when a correction is tried."""

FEWEST, MOST = 4, 30
"""Conjugate gradient iterations of a correction: what it is tried with, and what is enough."""


class Certifier:
    """Lower bounds of a family while it is solved.

    Attributes:
        tried: passes after the last correction.
    """

    def __init__(self) -> None:
        self.tried = 0.0

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
        """Lower bounds in nats, host `(m,)`.

        Args:
            family: the tasks at work.
            at: their evaluation.
            sample: rows drawn at that point, or None: then they are drawn where needed.
            inverse: a preconditioner for points nearby, or None: then nothing is corrected.
            target: gaps to reach, nats, host `(m,)`.
            step: of the loop; seeds the draw.
            last: whether a budget has run out, so that the bound is wanted however far it is.
        """
        value, hope = to_numpy(at.value), to_numpy(estimated_gap(family, at))
        if not (last or (hope <= REACH * target).any()):
            return np.zeros(family.m)  # the loss is never negative
        bound = to_numpy(lower_bound(family, at))
        open_ = (value - bound > target) & (hope <= REACH * target)
        if not open_.any():
            return bound
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
    """`v` `(m, p)`, of all iterates the one whose bound promises most; see the module."""
    xp = family.xp
    own = replace(sample, inverse_probability=xp.ones_like(sample.inverse_probability))
    g = at.gradient
    v, r = xp.zeros_like(g), g
    z = inverse.solve(r)
    p, rz = z, inner(r, z)
    best, lowest = v, xp.full_like(rz, xp.inf)
    limit = xp.asarray(0.5 * target, device=g.device)
    since = 0
    for _ in range(iterations):
        q = own.curvature(p)
        bend = inner(p, q)
        usable = (bend > 0) & (rz > 0)
        alpha = xp.where(usable, rz / xp.where(usable, bend, 1.0), 0.0)[:, None]
        v, r = v + alpha * p, r - alpha * q
        weights, bias = family.split(r)
        centred = weights - bias[:, :, None] * family.mean[:, None, :]
        left = xp.sum(centred * centred, axis=(1, 2)) / (2.0 * family.l2)
        gap = 0.5 * inner(g, v) + 0.5 * inner(r, v) + left
        better = gap < lowest
        since = 0 if bool(xp.any(gap < 0.9 * lowest)) else since + 1
        best, lowest = xp.where(better[:, None], v, best), xp.where(better, gap, lowest)
        if bool(xp.all(lowest <= limit)) or since >= 8:
            break
        z = inverse.solve(r)
        new = inner(r, z)
        p = z + xp.where(usable, new / xp.where(usable, rz, 1.0), 0.0)[:, None] * p
        rz = new
    return best
