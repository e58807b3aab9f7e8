"""Newton's method with the exact Hessian, for problems with few parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexprobe.arrays.backend import Array, cast, like, namespace
from convexprobe.arrays.linalg import cholesky, cholesky_solve
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.softmax import softmax_
from convexprobe.problem.tasks import PerTask, take_tasks
from convexprobe.solvers.base import SolverState
from convexprobe.solvers.line_search import line_search


@dataclass(frozen=True)
class NewtonCholesky:
    """Exact Newton steps by a Cholesky factor, with a line search on logits.

    A step is one pass and the Hessian, `O(n p^2 + p^3)` flops with `p` parameters; memory
    `O(m p^2)`. Convergence is quadratic: a handful of steps certify any tolerance. Use it while `p`
    is at most a few hundred.

    Source: Nocedal and Wright, Algorithm 3.2.
    """

    def init(self, problem: Problem, w: Array) -> SolverState:
        at = problem.evaluate(w, keep=True)
        return SolverState(at, built=at.loss)

    def step(self, problem: Problem, w: Array, state: SolverState) -> tuple[Array, SolverState]:
        at = state.at
        assert at is not None
        inverse = ExactInverse.of(hessian(problem, at))
        new, _ = line_search(problem, at, inverse.solve(at.gradient))
        return new.w, SolverState(new, None, state.steps + 1, inverse, at.loss)


@dataclass(frozen=True)
class ExactInverse(PerTask):
    """The Hessians of all tasks by their Cholesky factors, `(m, p, p)`."""

    factor: Array

    @classmethod
    def of(cls, matrix: Array) -> ExactInverse:
        """Factor Hessians; one that rounding made indefinite gets as much curvature as it needs."""
        xp, ridge = namespace(matrix), 0.0
        diagonal = xp.linalg.diagonal(matrix)
        eye = xp.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        size = xp.max(diagonal, axis=1)[:, None, None] * eye
        while (factor := cholesky(matrix + ridge * size if ridge else matrix)) is None:
            ridge = max(10.0 * ridge, 1e-15)
        return cls(factor)

    def solve(self, v: Array) -> Array:
        return cholesky_solve(self.factor, v[:, :, None])[:, :, 0]

    def take_tasks(self, index: list[int]) -> ExactInverse:
        return ExactInverse(take_tasks(self.factor, index))


def hessian(problem: Problem, at: Evaluation) -> Array:
    """`(1/S) sum_i s_i (diag P_i - P_i P_i^T) (x) [x_i; 1][x_i; 1]^T + l2`, `(m, p, p)` float64.

    Only the blocks of two different classes are summed: a row of blocks sums to 0. Equal changes of
    all biases change nothing, nor does the bias of a class without rows: they get some curvature,
    so that the matrix has an inverse. Without biases the rows have no 1.
    """
    xp, f64, (m, k) = problem.xp, problem.xp.float64, (problem.m, problem.k)
    width = problem.p // k
    pairs = [(a, b) for a in range(k) for b in range(a + 1, k)]
    blocks: Array = 0.0
    for span, x in problem.rows.blocks(m * k):
        problem.count_rows(2.0 * x.shape[0])
        z = problem.logits(at.w, x) if at.logits is None else at.logits[:, :, span]
        p = softmax_(cast(xp.asarray(z, copy=True), f64))
        share = cast(problem.weights_at(span), f64) / problem.total[:, None] + 0.0 * p[:, 0, :]
        rows = cast(x, f64)
        if problem.bias:
            ones = xp.ones((x.shape[0], 1), dtype=f64, device=x.device)
            rows = xp.concat([rows, ones], axis=1)
        turned = xp.matrix_transpose(rows)
        sums = [
            (turned * (share[t, :] * p[t, a, :] * p[t, b, :])) @ rows
            for t in range(m)
            for a, b in pairs
        ]
        blocks = blocks + xp.stack(sums)
    (blocks,) = problem.all_reduce(blocks)
    blocks, between = xp.reshape(blocks, (m, len(pairs), width, width)), {}
    for i, (a, b) in enumerate(pairs):
        between[a, b] = between[b, a] = blocks[:, i, :, :]
    own = [sum((between[a, b] for b in range(k) if b != a), 0.0) for a in range(k)]
    grid = [[own[a] if a == b else -between[a, b] for b in range(k)] for a in range(k)]
    matrix = xp.concat([xp.concat(line, axis=2) for line in grid], axis=1)
    return _ordered(problem, matrix)


def _ordered(problem: Problem, matrix: Array) -> Array:
    """The matrix with its parameters, `[W_c; b_c]` class by class, in the order of `w`, plus the
    penalty and a curvature for changes of biases that change nothing."""
    xp, k, d = problem.xp, problem.k, problem.d
    place = np.arange(problem.p).reshape(k, -1)
    order = like(np.concatenate([place[:, :d].ravel(), place[:, d:].ravel()]), matrix)
    matrix = xp.take(xp.take(matrix, order, axis=1), order, axis=2)
    eye = xp.eye(problem.p, dtype=matrix.dtype, device=matrix.device)
    kind = cast(xp.arange(problem.p, device=matrix.device) >= k * d, matrix.dtype)
    free, weights = kind[:, None] * kind[None, :] / k, eye * (1.0 - kind)
    size = xp.max(xp.abs(matrix), axis=(1, 2))[:, None, None]
    # Without a penalty this alone keeps rounding out of directions that no row has.
    least = like(np.where(problem.host_l2 > 0, 1e-16, 1e-5), matrix)[:, None, None] * size + 1e-300
    idle = cast(problem.absent < 0, matrix.dtype)  # classes without rows
    zeros = xp.zeros((problem.m, k, d), dtype=matrix.dtype, device=matrix.device)
    free = free + problem.join(zeros, idle)[:, :, None] * eye
    return matrix + problem.l2[:, None, None] * weights + size * free + least * eye
