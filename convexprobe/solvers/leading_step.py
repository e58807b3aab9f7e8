"""A Newton step for all rows, in the directions in which features vary most.

A step whose curvature comes from a sample leaves an error of the sample's size in every direction.
In the leading ones a bound feels it most (`problem.leading`), and there all rows cost little.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from convexprobe.arrays.backend import Array, cast, generator
from convexprobe.arrays.elementwise import minus_one_hot_
from convexprobe.arrays.ranks import local
from convexprobe.problem.certificate import estimated_gap
from convexprobe.problem.eigen_blocks import EigenBlocks
from convexprobe.problem.leading import Leading
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.pullback import Pullback
from convexprobe.problem.row_sample import Sample
from convexprobe.problem.softmax import curvature_product, softmax_
from convexprobe.solvers.conjugate_gradient import conjugate_gradient

TOLERANCE, ITERATIONS, SAMPLE = 0.2, 3, 2048
"""Of the conjugate gradients, and rows of their preconditioner."""


def pays(problem: Problem, at: Evaluation) -> bool:
    """Whether a bound is near enough to feel the leading directions: above 0 once repaired."""
    return bool(problem.xp.any(estimated_gap(problem, at.gradient, at.value) < at.value))


def leading_step(problem: Problem, leading: Leading, w: Array, logits: Array) -> Array:
    """The step to subtract from `w`, `(m, p)`; its logits are subtracted from `logits` in place.

    Some four products with all rows in the leading coordinates.

    Args:
        problem: the family.
        leading: its leading directions.
        w: the point, `(m, p)`.
        logits: of all rows there, `(m, k, n)`.
    """
    xp, inside = problem.xp, leading.inside
    index = local(generator(0).permutation(problem.n)[:SAMPLE], problem.own)
    chance = min(SAMPLE / problem.n, 1.0)
    sample = Sample.of(inside, w, index, np.full(len(index), 1.0 / chance), logits)
    weights, bias = problem.split(w)
    here = inside.join(weights @ leading.basis, xp.zeros_like(bias))
    gradient = _sum_over_rows(problem, inside, logits, None) + inside.penalty(here)
    v = conjugate_gradient(
        partial(_curvature, problem, inside, logits),
        gradient,
        EigenBlocks(inside.d).build(sample),
        tolerance=TOLERANCE,
        iterations=ITERATIONS,
    )
    v = cast(cast(v, problem.dtype), xp.float64)
    for span, x in inside.rows.blocks(problem.m * problem.k):
        logits[:, :, span] -= inside.directions(v, x)
    return leading.lift(problem, v)


def _curvature(problem: Problem, inside: Problem, logits: Array, v: Array) -> Array:
    """The Hessian of all rows inside, times `v`."""
    return _sum_over_rows(problem, inside, logits, v) + inside.penalty(v)


def _sum_over_rows(problem: Problem, inside: Problem, logits: Array, v: Array | None) -> Array:
    """All rows' part of the Hessian times `v` inside, or of the gradient without a `v`."""
    xp = problem.xp
    pulled = Pullback(inside, problem.m)
    for span, x in inside.rows.blocks(problem.m * problem.k):
        r = softmax_(xp.asarray(logits[:, :, span], copy=True))
        if v is None:
            r = minus_one_hot_(r, problem.labels_at(span))
        else:
            r = curvature_product(r, inside.directions(v, x))
        if problem.weights is not None:
            r *= problem.weights_at(span)[:, None, :]
        pulled.add(r, x)
    problem.count_rows((1.0 if v is None else 2.0) * problem.rows.n * inside.d / problem.d)
    (total,) = problem.all_reduce(pulled.value())
    return total / problem.total[:, None]
