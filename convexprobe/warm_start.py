"""Starting points: the best constant classifier, or another probe where that is better."""

from __future__ import annotations

import numpy as np

from convexprobe._array import Array, cast, generator, like, to_numpy
from convexprobe.objective import Problem
from convexprobe.softmax import softmax


def best_start(
    problem: Problem,
    candidate: np.ndarray | None,
    *,
    origin: Array | None = None,
    rows: int = 2048,
) -> Array:
    """Per task, the candidate or the origin, whichever has the lower objective.

    Early in training the probe of the previous checkpoint can be far worse than zero, so it has to
    win on a sample of rows first. The optimum is unique for `l2 > 0`: a start cannot bias it.

    Args:
        problem: the family.
        candidate: another probe's parameters, host `(m or 1, p)`; non-finite entries count as 0.
        origin: `(m, p)`, the best constant classifier when None.
        rows: rows of the sample; the comparison costs about `rows / n` of a pass.

    Returns:
        Starts `(m, p)` float64.
    """
    origin = problem.origin() if origin is None else origin
    if candidate is None:
        return origin
    xp = problem.xp
    clean = np.where(np.isfinite(candidate), candidate, 0.0).astype(np.float64)
    other = like(np.broadcast_to(clean, (problem.m, problem.p)).copy(), origin)
    index = generator(0).permutation(problem.n)[:rows]
    better = _objective(problem, other, index) < _objective(problem, origin, index)
    return xp.where(better[:, None], other, origin)


def _objective(problem: Problem, w: Array, index: np.ndarray) -> Array:
    """`F` on the rows of a host index, `(m,)`."""
    xp = problem.xp
    x = problem.rows.take(index)
    labels = xp.take(problem.labels, like(index, x), axis=1)
    order = xp.arange(problem.k, dtype=labels.dtype, device=labels.device)
    correct = labels[:, None, :] == order[None, :, None]
    p = xp.sum(xp.where(correct, softmax(problem.logits(w, x)), 0.0), axis=1)
    loss = -xp.log(xp.clip(cast(p, xp.float64), 1e-30, None))
    weights, _ = problem.split(w)
    penalty = 0.5 * problem.l2 * xp.sum(weights * weights, axis=(1, 2))
    share = None if problem.weights is None else xp.take(problem.weights, like(index, x), axis=1)
    if share is None:
        return xp.mean(loss, axis=1) + penalty
    share = cast(share, xp.float64)
    total = xp.sum(share, axis=1)
    return xp.sum(loss * share, axis=1) / xp.where(total > 0, total, 1.0) + penalty


def stack(weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Host parameters `(1, p)` of weights `(k, d)` and bias `(k,)`."""
    return to_numpy(np.concatenate([weights.ravel(), bias]))[None, :]
