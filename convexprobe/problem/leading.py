"""All rows in the few directions in which features vary most.

Curvature is largest there, and so is what an error costs a lower bound: a residual `r` of the
gradient counts `||r||^2 / (2 l2)`, so that an error `v` of the weights counts `lambda^2 / (2 l2)`
times `v^2` along a direction of curvature `lambda`, where the objective has `lambda / 2`. In `q`
coordinates a product with all rows costs `q / d` of one with the rows themselves: few enough to
solve for these directions without sampling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import Array, cast, generator, like
from convexprobe.arrays.linalg import eigh
from convexprobe.arrays.ranks import local
from convexprobe.problem.objective import Problem
from convexprobe.problem.tasks import PerTask

MOST, SHARE = 64, 16
"""Directions at most, and features for each of them: five products then cost a sixth of a pass."""

COLUMNS = 4
"""Classes for each direction, so that the coordinates cost an eighth of a pass at most."""

LEAST = 16
"""Directions below which they are not worth their calls."""

_SAMPLE, _ROUNDS, _MARGIN = 4096, 4, 8
"""Rows, rounds and further directions of the subspace iteration."""


@dataclass(frozen=True)
class Leading(PerTask):
    """The directions, and the family in their coordinates.

    Attributes:
        basis: orthonormal, `(d, q)`.
        centre: where the coordinates are 0, `(d,)`.
        inside: the same tasks on the coordinates of all rows.
    """

    basis: Array
    centre: Array
    inside: Problem

    def take_tasks(self, index: list[int]) -> Leading:
        return replace(self, inside=self.inside.take_tasks(index))

    def lift(self, problem: Problem, v: Array) -> Array:
        """Parameters of the family, `(m, p)`, whose logits are those of `v` inside."""
        weights, bias = self.inside.split(v)
        weights = weights @ problem.xp.matrix_transpose(self.basis)
        return problem.join(weights, bias - weights @ self.centre)


def directions(problem: Any) -> int:
    """How many directions are worth their coordinates; 0 where none are.

    Rows that are streamed would be read once more, and families with few classes are as quick to
    multiply with. It asks the family's sizes alone.
    """
    if problem.capacity < problem.n:
        return 0
    q = min(MOST, problem.d // SHARE, problem.k // COLUMNS)
    return q if q >= LEAST else 0


def leading(problem: Problem) -> Leading:
    """The leading directions of a sample's covariance, by subspace iteration; kept for the family.

    O(s d q) flops for `s` rows, and `q / k` of half a pass.

    Source: Halko, Martinsson and Tropp 2011, Algorithm 4.4.
    """
    xp, f64 = problem.xp, problem.xp.float64
    q = directions(problem)
    index = local(generator(0).permutation(problem.n)[:_SAMPLE], problem.own)
    mean = problem.centre(xp.mean(problem.mean, axis=0))
    centre = cast(mean, problem.dtype)
    x = problem.rows.take(index) - centre
    start = generator(1).standard_normal((problem.d, min(q + _MARGIN, problem.d)))
    basis = like(start, x, problem.dtype)
    for _ in range(_ROUNDS):
        (image,) = problem.all_reduce(cast(xp.matrix_transpose(x) @ (x @ basis), f64))
        basis = cast(xp.linalg.qr(image)[0], problem.dtype)
    seen = x @ basis
    (gram,) = problem.all_reduce(cast(xp.matrix_transpose(seen) @ seen, f64))
    turn = xp.flip(eigh(gram)[1], axis=1)[:, :q]
    basis = cast(cast(basis, f64) @ turn, problem.dtype)
    shape = (problem.rows.n, q)
    coordinates = xp.empty(shape, dtype=problem.dtype, device=basis.device)
    for span, rows in problem.rows.blocks(q, once=True):
        coordinates[span, :] = (rows - centre) @ basis
        problem.count_rows(rows.shape[0] * q / problem.k)
    return Leading(cast(basis, f64), mean, problem.on_rows(Rows(coordinates)))
