"""Solve one task at several values of scikit-learn's `C`, and hand out its coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from convexprobe.activations.checks import check_finite
from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import Array, cast, compute_dtype, like, to_numpy
from convexprobe.problem.objective import Problem
from convexprobe.solvers import Solver
from convexprobe.solvers.path import Fitted, solve_path
from convexprobe.solvers.starts import Previous


def solve_penalties(
    x: Array,
    codes: np.ndarray,
    classes: int,
    weights: np.ndarray | None,
    Cs: Sequence[float],
    *,
    bias: bool,
    solver: Solver,
    tol: float,
    max_iter: int,
    start: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[Problem, list[Fitted]]:
    """The family of one task, and its solution at every `C`, in the order given.

    scikit-learn minimises `C sum_i s_i loss_i + ||w||^2 / 2`. Divided by `C S`, with `S = sum_i
    s_i`, that is the objective here for `l2 = 1 / (C S)`. Of two classes scikit-learn has one
    vector, the difference `w` of ours, which are `-w/2` and `w/2` and half its square: `l2 = 2 /
    (C S)`.

    Args:
        x: rows `(n, d)` in float32 or float64, of any library.
        codes: class indices, host `(n,)`.
        classes: number of classes.
        weights: of the rows, host `(n,)`, or None.
        Cs: positive; infinity for no penalty.
        bias: whether there are biases.
        solver, tol: as for `fit_probes`.
        max_iter: the solver's steps at each `C`, at most.
        start: coefficients and intercepts in scikit-learn's shapes to start from, or None.

    Raises:
        ValueError: values so large that sums overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        problem = Problem(
            Rows(x),
            like(codes, x),
            0.0,
            classes=classes,
            weights=None if weights is None else like(weights, x, compute_dtype(x)),
            bias=bias,
        )
    _check_sizes(problem)
    scale = (2.0 if classes == 2 else 1.0) / float(problem.total[0])
    (solutions,) = solve_path(
        problem,
        scale / np.asarray(Cs),
        solver,
        None if start is None else _previous(problem, *start),
        tol=tol,
        max_passes=np.inf,
        max_seconds=np.inf,
        max_steps=max_iter,
    )
    return problem, [_centred(problem, solution) for solution in solutions]


def coefficients(weights: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(k, d)` and biases `(k,)` in scikit-learn's shapes: of two classes the difference.

    A class without rows has minus infinity for an intercept.
    """
    if len(bias) > 2:
        return weights, bias
    return weights[1:] - weights[:1], bias[1:] - bias[:1]


def _check_sizes(problem: Problem) -> None:
    """Refuse values whose squares would overflow in a solver."""
    largest = 0.01 * float(problem.xp.finfo(problem.dtype).max) ** 0.5
    if not np.abs(to_numpy(problem.moment)).max() < 0.1 * largest:
        check_finite(problem.rows, "X", largest)
        raise ValueError("X: values so large that their sum overflows; scale them down")


def _previous(problem: Problem, coef: np.ndarray, intercept: np.ndarray) -> Previous:
    """Coefficients and intercepts in scikit-learn's shapes as a start; infinite ones count as 0."""
    rows = 1 if problem.k == 2 else problem.k
    if coef.shape != (rows, problem.d):
        raise ValueError(
            f"warm_start: expected coef_ of shape {(rows, problem.d)} for these rows and classes, "
            f"found {coef.shape}; pass warm_start=False"
        )
    if rows == 1:
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept])
        intercept = intercept / 2
    weights = like(coef[None].astype(np.float64), problem.moment)
    return Previous(problem.join(weights, like(intercept[None].astype(float), problem.moment)))


def _centred(problem: Problem, solution: Fitted) -> Fitted:
    """The solution without what the classes' weights share, which costs a penalty alone.

    At the optimum nothing is shared. The objective and the gap fall by the same number. In float32
    rounding would cost more than that.
    """
    xp = problem.xp
    if problem.dtype != xp.float64:
        return solution
    present = cast(problem.frequency > 0, xp.float64)[:, :, None]
    count = xp.sum(present, axis=1, keepdims=True)
    weights, bias = problem.split(solution.w[None, :])
    before, bias = float(xp.sum(weights * weights)), bias[:, :, None]
    weights, bias = (
        (part - xp.sum(part * present, axis=1, keepdims=True) / count) * present
        for part in (weights, bias)
    )
    saved = 0.5 * solution.l2 * max(before - float(xp.sum(weights * weights)), 0.0)
    return replace(
        solution,
        w=problem.join(weights, bias[:, :, 0])[0, :],
        objective=solution.objective - saved,
        gap=max(solution.gap - saved, 0.0),
    )
