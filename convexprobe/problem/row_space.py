"""Wide rows: the same problem in the space that the rows span, with as many features as rows.

A minimiser's weights are combinations of the rows (the representer theorem). With centred rows
`X`, `(n, d)`, and the Cholesky factor `X X^T = L L^T`, `X = L Q^T` for a `Q` with orthonormal
columns, and for `W = V Q^T`

    W x_i = V L_i,    ||W|| = ||V||,    W = V L^-1 X:

`F` is the same function of `V` on the `n` rows of `L`, at `n / d` of the price a pass. The Gram
matrix is rounded, and is made definite by a ridge of that size: what is found here is where the
solve on the rows themselves starts, whose certificate vouches for it. Costs `n^2 d` once. The Gram
matrix needs every pair of rows: rows dealt out over ranks are solved as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import Array, cast, epsilon
from convexprobe.arrays.linalg import cholesky, solve_triangular
from convexprobe.problem.objective import Problem

MOST_ROWS = 2048
"""Rows up to which the Gram matrix and its factor cost little beside the solve.

Measured on one thread, newton-cg certified to 1e-5 on 1 195 x 25 088: 7.4 s on the rows, 1.5 s in
their space.
"""

_FAST = 4.0
"""Flops of the Gram matrix in the time of one flop of a pass."""

COLUMNS = 512
"""Features whose products add up in the compute dtype before float64 takes over."""


@dataclass(frozen=True)
class RowSpace:
    """A family of wide rows as a family of `n` features.

    Attributes:
        source: the family.
        problem: the same tasks on the rows of `L`.
        factor: `L`, `(n, n)` float64.
        mean: feature means, `(d,)` in the compute dtype.
    """

    source: Problem
    problem: Problem
    factor: Array
    mean: Array

    def project(self, w: Array) -> Array:
        """Parameters `(m, n k + k)` of the nearest classifier in the rows' space; half a pass."""
        self.source.count_rows(self.source.n)
        weights, bias = self.source.split(w)
        m, k, d = weights.shape
        xp, flat = self.source.xp, cast(weights, self.source.dtype)
        flat = self.source.xp.reshape(flat, (m * k, d))
        logits = xp.concat([flat @ (x - self.mean).T for _, x in self.source.rows.blocks()], axis=1)
        v = solve_triangular(self.factor, cast(logits, w.dtype).T, upper=False).T
        shift = xp.reshape(cast(flat @ self.mean, w.dtype), (m, k))
        return self.problem.join(xp.reshape(v, (m, k, -1)), bias + shift)

    def lift(self, v: Array) -> Array:
        """The same classifiers on the rows themselves, `(m, p)`; half a pass."""
        self.source.count_rows(self.source.n)
        weights, bias = self.problem.split(v)
        m, k, n = weights.shape
        xp, dtype = self.source.xp, self.source.dtype
        flat = cast(
            solve_triangular(self.factor.T, xp.reshape(weights, (m * k, n)).T, upper=True).T, dtype
        )
        out = 0.0
        for span, x in self.source.rows.blocks():
            out = out + flat[:, span] @ (x - self.mean)
        shift = xp.reshape(cast(out @ self.mean, v.dtype), (m, k))
        return self.source.join(xp.reshape(cast(out, v.dtype), (m, k, -1)), bias - shift)


def row_space(problem: Problem) -> RowSpace:
    """The family in the space of its rows; counts as what its products cost, `n / 2k` passes."""
    xp, rows, n = problem.xp, problem.rows, problem.n
    mean = cast(xp.mean(problem.mean, axis=0), problem.dtype)
    x = rows.take(np.arange(n))
    gram: Array = 0.0
    for start in range(0, problem.d, COLUMNS):
        span = slice(start, min(start + COLUMNS, problem.d))
        part = x[:, span] - mean[span]
        gram = gram + cast(part @ part.T, xp.float64)
    eye = xp.eye(n, dtype=gram.dtype, device=gram.device)
    trace = xp.sum(gram * eye)
    ridge = epsilon(problem.dtype, gram) * trace / n**0.5 + 1e-300
    factor = cholesky(gram + ridge * eye)
    while factor is None:
        ridge = 4.0 * ridge
        factor = cholesky(gram + ridge * eye)
    inside = Problem(
        Rows(cast(factor, problem.dtype)),
        problem.labels,
        problem.host_l2,
        classes=problem.k,
        weights=problem.weights,
    )
    problem.count_rows(n * n / problem.k)
    return RowSpace(problem, inside, factor, mean)


def row_space_passes(problem: Problem) -> float:
    """What the row space costs, in passes: a product of all rows with all rows is a fast one."""
    return problem.n / (2.0 * max(problem.k, 2)) / _FAST + 4.0


def is_wide(problem: Problem) -> bool:
    """Whether there are few rows, all of them here, and at least twice as many features."""
    few = problem.communicator.size == 1 and problem.n <= MOST_ROWS
    return few and problem.d >= 2 * problem.n
