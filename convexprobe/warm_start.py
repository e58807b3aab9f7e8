"""Starting points: the best constant classifier, or an earlier probe where that is better.

The probe of an earlier checkpoint can be *copied*, or *transferred*: one Newton step on the new
activations, taken from the logits `z_i` that it had on the old ones. With residuals
`R_i = softmax(z_i) - y_i` and curvature `h_i = (1 - sum_k P_ik^2)/(k-1)`, the quadratic model of
the objective around those logits,

    (1/S) sum_i s_i [ R_i (W x_i + b - z_i) + h_i/2 ||W x_i + b - z_i||^2 ]  +  l2/2 ||W||^2,

is minimised by one solve with `X^T diag(h) X / S + l2 I`. It asks for what the old probe knew of
every row, not for its weights, so it follows a representation that rotates; and it returns the old
probe exactly if nothing changed and that was optimal. Measured on MNIST convnet activations 44 SGD
steps apart (l2 = 1e-3), nats above the optimum, early / late in two epochs: copied 0.07 to 0.28 /
0.004 to 0.013, plain ridge regression of the old logits 0.03 to 0.08 / 0.001 to 0.012, this 0.003
to 0.012 / 0.0002 to 0.0006; `tol=1e-3` is 0.0023.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexprobe._array import Array, cast, generator, inverse_spd, like, namespace, to_numpy
from convexprobe.family import PerTask, select
from convexprobe.linear_model import Pullback
from convexprobe.objective import Problem
from convexprobe.sample import draw_rows
from convexprobe.softmax import softmax
from convexprobe.sources import Rows


@dataclass(frozen=True)
class Previous(PerTask):
    """An earlier probe of every task.

    Attributes:
        w: its parameters, `(m, p)`; entries that are not finite count as 0.
        logits: what it had on the earlier activations of `rows`, `(m, k, r)`, or None.
        rows: which rows those are, host `(r,)`.
    """

    w: Array
    logits: Array | None = None
    rows: np.ndarray | None = None

    def tasks(self, index: list[int]) -> Previous:
        """The remaining tasks."""
        return Previous(select(self.w, index), select(self.logits, index), self.rows)


def best_start(
    problem: Problem,
    previous: Previous | None,
    *,
    origin: Array | None = None,
    rows: int = 2048,
) -> tuple[Array, list[str]]:
    """Per task, the origin, the copied or the transferred probe: the one of lowest objective.

    Early in training the probe of the previous checkpoint can be far worse than zero, so it has to
    win on a sample of rows first. The optimum is unique for `l2 > 0`: a start cannot bias it.

    Args:
        problem: the family.
        previous: the earlier probe, if there is one.
        origin: `(m, p)`, the neighbour on a path; the best constant classifier when None.
        rows: rows of the sample; a comparison costs half of `rows / n` passes for each start.

    Returns:
        Starts `(m, p)` float64, and what each is: "zero" (the constant classifier), "neighbour" (an
        origin that was given), "copied" or "transferred".
    """
    best = problem.origin() if origin is None else origin
    chosen = ["zero" if origin is None else "neighbour"] * problem.m
    if previous is None:
        return best, chosen
    xp = problem.xp
    copied = xp.where(xp.isfinite(previous.w), cast(previous.w, best.dtype), 0.0)
    candidates = {"copied": copied}
    if previous.logits is not None and previous.rows is not None:
        candidates["transferred"] = transferred(problem, previous.logits, previous.rows)
    index = generator(0).permutation(problem.n)[:rows]
    lowest = _objective(problem, best, index)
    for name, other in candidates.items():
        value = _objective(problem, other, index)
        better = value < lowest  # never of a NaN
        best = xp.where(better[:, None], other, best)
        lowest = xp.where(better, value, lowest)
        chosen = [name if new else old for new, old in zip(to_numpy(better), chosen, strict=True)]
    return best, chosen


def transferred(problem: Problem, logits: Array, rows: np.ndarray, *, seed: int = 0) -> Array:
    """The minimiser `(m, p)` float64 of the quadratic model around given logits.

    The residuals' part is summed over all the rows, half a pass; the curvature's over a sample of
    `s = max(2500, 4 d)` of them, `d` counted up to 1 024, drawn in proportion to `h`: one Gram
    matrix for each task, of features or (the dual form) of rows where those are fewer.
    `O(s d min(s, d) + min(s, d)^3)` for each task.

    Args:
        problem: the family.
        logits: the old logits `(m, k, r)`; those of classes without rows are ignored.
        rows: which rows they are of, host `(r,)`.
        seed: of the draw.
    """
    xp, f64 = problem.xp, problem.xp.float64
    source = problem.rows if len(rows) == problem.n else Rows(problem.rows.take(rows))
    at = like(rows, problem.labels)
    z = cast(logits, problem.dtype)
    z = xp.where(xp.isfinite(z) & (problem.absent[:, :, None] == 0), z, 0.0)
    p = softmax(z + problem.absent[:, :, None])
    uncertainty = 1.0 - xp.sum(p * p, axis=1)
    labels = xp.take(problem.labels, at, axis=1)
    order = xp.arange(problem.k, dtype=labels.dtype, device=labels.device)
    residual = p - cast(labels[:, None, :] == order[None, :, None], problem.dtype)
    share = None if problem.weights is None else xp.take(problem.weights, at, axis=1)
    if share is None:
        share = xp.ones((1, len(rows)), dtype=problem.dtype, device=z.device)
    share = share / xp.sum(share, axis=1, keepdims=True)
    residual *= share[:, None, :]
    pulled = Pullback(problem, problem.m)
    for span, x in source.blocks(problem.m * problem.k):
        pulled.add(residual[:, :, span], x)
    gradient, slope = problem.split(pulled.value())

    size = max(2500, 4 * min(problem.d, 1024))
    index, inverse = draw_rows(uncertainty, share, size, generator(seed))
    x, take = source.take(index), like(index, z)
    present = xp.sum(cast(problem.frequency > 0, f64), axis=1)
    out = []
    for t in range(problem.m):
        h = xp.take(uncertainty[t, :] * share[min(t, share.shape[0] - 1), :], take, axis=0)
        h = h * like(inverse, x, problem.dtype) / float(present[t] - 1)
        mass = xp.sum(h) + 1e-30
        target = xp.take(z[t, :, :], take, axis=1)
        mean, centre = h @ x / mass, target @ h / mass
        root = xp.sqrt(h)
        a = (x - mean[None, :]) * root[:, None]
        b = (target - centre[:, None]) * root[None, :]
        bend = cast(gradient[t, :, :] - slope[t, :, None] * mean[None, :], f64)
        w = _ridge(a, b, bend, float(problem.host_l2[t]))
        bias = cast(centre, f64) - slope[t, :] / cast(mass, f64) - w @ cast(mean, f64)
        out.append(problem.join(w[None, :, :], bias[None, :])[0, :])
    problem.spend((0.5 * len(rows) + len(index)) / problem.n)
    return xp.stack(out)


def _ridge(a: Array, b: Array, bend: Array, l2: float) -> Array:
    """`(b a - bend)(a^T a + l2 I)^-1`, `(k, d)` float64, for `a` `(s, d)`, `b` `(k, s)`.

    The dual form knows of no curvature outside the rows' span but `l2`: there `bend` is divided by
    the harmonic mean of the eigenvalues met, if that is more.
    """
    xp = namespace(a)
    f64 = xp.float64
    dual = a.shape[0] < a.shape[1]
    gram = cast(a @ a.T if dual else a.T @ a, f64)
    eye = xp.eye(gram.shape[0], dtype=f64, device=gram.device)
    scale = xp.sum(gram * eye) / gram.shape[0]
    inverse = inverse_spd(gram + (l2 + 1e-7 * scale) * eye)
    if not dual:
        return (cast(b @ a, f64) - bend) @ inverse
    wide = cast(a, f64)
    damping = 1.0 / (xp.sum(inverse * eye) / gram.shape[0])
    damped = inverse_spd(gram + damping * eye)
    return (cast(b, f64) @ inverse) @ wide - (bend - ((bend @ wide.T) @ damped) @ wide) / damping


def _objective(problem: Problem, w: Array, index: np.ndarray) -> Array:
    """`F` on the rows of a host index, `(m,)`."""
    xp = problem.xp
    x = problem.rows.take(index)
    labels = xp.take(problem.labels, like(index, x), axis=1)
    order = xp.arange(problem.k, dtype=labels.dtype, device=labels.device)
    correct = labels[:, None, :] == order[None, :, None]
    p = xp.sum(xp.where(correct, softmax(problem.logits(w, x)), 0.0), axis=1)
    problem.spend(0.5 * len(index) / problem.n)
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
