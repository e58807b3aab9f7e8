"""Wide rows: the same problem in the space that the rows span, with as many features as rows.

A minimiser's weights are combinations of the rows (the representer theorem). With rows `X`,
`(n, d)`, centred unless no bias takes the mean's part, and the Cholesky factor `X X^T = L L^T`,
`X = L Q^T` for a `Q` with orthonormal columns, and for `W = V Q^T`

    W x_i = V L_i,    ||W|| = ||V||,    W = V L^-1 X:

`F` is the same function of `V` on the `n` rows of `L`, where a pass costs `n / d` of one here. The
Gram matrix costs `n^2 d` once. As it is rounded, a ridge of that size makes it definite, and the
solution found in the space is only a start for the solve on the rows, whose certificate decides.
Rows dealt out over ranks are solved as they are: the Gram matrix needs every pair of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import Array, cast, epsilon
from convexprobe.arrays.linalg import cholesky, solve_triangular
from convexprobe.problem.linear_model import CALLS
from convexprobe.problem.objective import Problem

MOST_ROWS = 2048
"""Rows up to which the Gram matrix and its factor cost little beside the solve."""

_FAST, _CUBES = 10.0, 20.0
"""How many flops of the Gram matrix take the time of one flop of a pass, and how many times `n^3`
its factor, the projections and the dense curvature of `n` features count beside it."""

AT_ONCE = 35.0
"""Passes that entering takes, by `row_space_passes`, up to which no solve begins on the rows as
they are: most would take as many there, and inside a pass costs next to nothing."""

COLUMNS = 4096
"""Features whose products add up in the compute dtype before float64 takes over: the solution is
only a start, and adding in float64 more often takes half as long again."""


@dataclass(frozen=True)
class RowSpace:
    """A family of wide rows as a family with `n` features.

    Attributes:
        source: the family.
        problem: the same tasks on the rows of `L`.
        factor: `L`, `(n, n)` float64.
        mean: feature means, or zeros without biases, `(d,)` in the compute dtype.
    """

    source: Problem
    problem: Problem
    factor: Array
    mean: Array

    def project(self, w: Array) -> Array:
        """Parameters `(m, n k + k)` of the nearest classifier in the rows' space; half a pass, or
        nothing for weights that are 0."""
        weights, bias = self.source.split(w)
        (m, k, d), xp = weights.shape, self.source.xp
        if not bool(xp.any(weights != 0)):
            n = self.factor.shape[0]
            zero = xp.zeros((m, k, n), dtype=w.dtype, device=w.device)
            return self.problem.join(zero, bias)
        self.source.count_rows(self.source.n)
        flat = xp.reshape(cast(weights, self.source.dtype), (m * k, d))
        logits = xp.concat([flat @ (x - self.mean).T for _, x in self.source.rows.blocks()], axis=1)
        v = solve_triangular(self.factor, cast(logits, w.dtype).T, upper=False).T
        shift = xp.reshape(cast(flat @ self.mean, w.dtype), (m, k))
        return self.problem.join(xp.reshape(v, (m, k, -1)), bias + shift)

    def lift(self, v: Array) -> Array:
        """The same classifiers on the rows as they are, `(m, p)`; half a pass."""
        self.source.count_rows(self.source.n)
        weights, bias = self.problem.split(v)
        m, k, n = weights.shape
        xp, out = self.source.xp, 0.0
        flat = xp.reshape(weights, (m * k, n)).T
        flat = cast(solve_triangular(self.factor.T, flat, upper=True).T, self.source.dtype)
        for span, x in self.source.rows.blocks():
            out = out + flat[:, span] @ (x - self.mean)
        shift = xp.reshape(cast(out @ self.mean, v.dtype), (m, k))
        return self.source.join(xp.reshape(cast(out, v.dtype), (m, k, -1)), bias - shift)


def row_space(problem: Problem) -> RowSpace:
    """The family in the space of its rows; counted by its products, as `n / 2k` passes."""
    xp, rows, n = problem.xp, problem.rows, problem.n
    mean = cast(problem.centre(xp.mean(problem.mean, axis=0)), problem.dtype)
    x = rows.take(np.arange(n))
    gram: Array = None
    for start in range(0, problem.d, COLUMNS):
        span = slice(start, min(start + COLUMNS, problem.d))
        part = x[:, span] - mean[span]
        square = cast(part @ part.T, xp.float64)
        gram = square if gram is None else gram + square
    diagonal = xp.reshape(gram, (-1,))[:: n + 1]  # a view
    ridge = epsilon(problem.dtype, gram) * xp.sum(diagonal) / n**0.5 + 1e-300
    diagonal += ridge
    while (factor := cholesky(gram)) is None:
        diagonal += 3.0 * ridge
        ridge = 4.0 * ridge
    problem.count_rows(n * n / problem.k)
    return RowSpace(problem, problem.on_rows(Rows(cast(factor, problem.dtype))), factor, mean)


def row_space_passes(problem: Problem) -> float:
    """What entering the row space takes of the time of a pass."""
    n, d = problem.n, problem.d
    flops = 2.0 * n * n * d + _CUBES * n**3
    return flops / (_FAST * (CALLS + 2.0 * n * d * problem.m * problem.k)) + 2.0


def is_wide(problem: Problem) -> bool:
    """Whether there are few rows, all of them here, and at least twice as many features."""
    few = problem.communicator.size == 1 and problem.n <= MOST_ROWS
    return few and problem.d >= 2 * problem.n
