"""Starting points: the best constant classifier, or an earlier probe if that is better.

The probe of an earlier checkpoint can be *copied*, or *transferred*: one Newton step on the new
activations, taken from the logits `z_i` that it had on the old ones. With residuals
`R_i = softmax(z_i) - y_i` and curvature `h_i = (1 - sum_k P_ik^2)/(k-1)`, the quadratic model of
the objective around those logits,

    (1/S) sum_i s_i [ R_i (W x_i + b - z_i) + h_i/2 ||W x_i + b - z_i||^2 ]  +  l2/2 ||W||^2,

is minimised by one solve with `X^T diag(h) X / S + l2 I`. It uses what the old probe said of every
row, not its weights, and so follows a representation that rotates; it returns the old probe if that
was optimal and nothing changed. Where the old logits are of a part of the rows only, their labels
would be most of what such a step learns: then a ridge regression follows the logits alone.
`docs/decisions/path.md` has how near the optimum either starts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexprobe.activations.source import Source
from convexprobe.arrays.backend import Array, beside, cast, generator, to_numpy
from convexprobe.arrays.elementwise import minus_one_hot_, pick
from convexprobe.arrays.linalg import inverse_spd
from convexprobe.arrays.ranks import local
from convexprobe.problem.objective import Problem
from convexprobe.problem.preconditioners import Curvature, Inverse
from convexprobe.problem.pullback import Pullback, pullback
from convexprobe.problem.row_sample import Sample, draw_rows
from convexprobe.problem.softmax import softmax_
from convexprobe.problem.tasks import PerTask, take_tasks

RIDGE = 0.01
"""Of a regression of old logits, in units of the mean feature variance."""


@dataclass(frozen=True)
class Previous(PerTask):
    """An earlier probe of every task.

    Attributes:
        w: its parameters, `(m, p)`; entries that are not finite count as 0.
        logits: those it had on the earlier activations of `rows`, `(m, k, r)`, or None.
        rows: which of this rank's rows those are, host `(r,)`.
    """

    w: Array
    logits: Array | None = None
    rows: np.ndarray | None = None

    def take_tasks(self, index: list[int]) -> Previous:
        return Previous(take_tasks(self.w, index), take_tasks(self.logits, index), self.rows)


@dataclass(frozen=True)
class Start:
    """Where a solve starts.

    Attributes:
        w: `(m, p)` float64.
        names: each task's kind of start, as in `Solved`.
        inverse: the transfer's preconditioner, if all tasks start from it, or None.
    """

    w: Array
    names: list[str]
    inverse: Inverse | None = None


def best_start(
    problem: Problem, previous: Previous | None, *, origin: Array | None = None, rows: int = 2048
) -> Start:
    """Each task's start of lowest objective: the origin, the copied or the transferred probe.

    Early in training an earlier probe can be far worse than zero: it has to win on a sample of
    rows. For `l2 > 0` the optimum is unique, and no start can bias it.

    Args:
        problem: the family.
        previous: the earlier probe, or None.
        origin: `(m, p)`, the neighbour on a path; None for the best constant classifier.
        rows: rows of the sample; each start compared costs `rows / 2n` passes.
    """
    best = problem.constant_classifier() if origin is None else origin
    names = ["zero" if origin is None else "neighbour"] * problem.m
    if previous is None:
        return Start(best, names)
    xp = problem.xp
    index = generator(0).permutation(problem.n)[:rows]
    lowest = _objective(problem, best, index)

    def consider(name: str, other: Array) -> None:
        nonlocal best, lowest, names
        value = _objective(problem, other, index)
        better = value < lowest  # never true of a NaN
        best = xp.where(better[:, None], other, best)
        lowest = xp.where(better, value, lowest)
        names = [name if new else old for new, old in zip(to_numpy(better), names, strict=True)]

    copied = xp.where(xp.isfinite(previous.w), cast(previous.w, best.dtype), 0.0)
    consider("copied", problem.communicator.broadcast(copied))
    if previous.logits is None or previous.rows is None:
        return Start(best, names)
    kept = problem.all_reduce(np.asarray(float(len(previous.rows))))[0]
    move = transferred if kept == problem.n else regressed
    moved, inverse = move(problem, best, previous.logits, previous.rows)
    consider("transferred", moved)
    return Start(best, names, inverse if set(names) == {"transferred"} else None)


def transferred(
    problem: Problem,
    base: Array,
    logits: Array,
    rows: np.ndarray,
    *,
    curvature: Curvature = Curvature(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> tuple[Array, Inverse]:
    """Minimise the quadratic model around given logits: half a pass over their rows and a build.

    The minimiser is `base + v`, with the `h` and `C` of `curvature` on a sample of rows, and

        (C + l2) v = (1/S) sum_i s_i [ h_i (z_i - z_i(base)) - R_i ] [x_i; 1]^T - l2 base.

    Args:
        problem: the family.
        base: parameters `(m, p)`; they matter only where `C` has low rank: then directions that the
            sample does not see stay as they are.
        logits: the old logits `(m, k, r)`; those of classes without rows are ignored.
        rows: which of this rank's rows they are of, host `(r,)`.
        curvature: the recipe of `C`.
        seed: of the draw.

    Returns:
        The parameters, `(m, p)` float64, and `(C + l2)^-1`, a preconditioner near them.
    """
    xp = problem.xp
    present = cast(problem.absent == 0, xp.float64)[:, :, None]
    weights, bias = problem.split(base)
    # Weights that all classes share change no probability but cost a penalty.
    shared = xp.sum(weights * present, axis=1, keepdims=True)
    shared = shared / xp.sum(present, axis=1, keepdims=True)
    base = problem.join((weights - shared) * present, bias)
    source = problem.rows if len(rows) == problem.rows.n else problem.rows.subset(rows)
    z = _cleaned(problem, logits)
    p = softmax_(z + problem.absent[:, :, None])
    residual = minus_one_hot_(xp.asarray(p, copy=True), problem.labels_at(rows))
    share = _share(problem, rows)
    residual *= share[:, None, :]
    pulled = Pullback(problem, problem.m)
    for span, x in source.blocks(problem.m * problem.k, once=True):
        pulled.add(residual[:, :, span], x)

    sample = _drawn(problem, source, p, share, seed)
    take = beside(sample.index, z)
    inverse = curvature.build(sample)
    shared, mass = curvature.row_curvature(problem, sample.p, sample.weight)
    mass, total = problem.all_reduce(mass, xp.sum(shared))
    h = cast(mass / (total + 1e-30), problem.dtype)[:, :, None] * shared  # as in C
    gap = xp.take(z, take, axis=2) - problem.directions(base, sample.x)
    present = cast(present, problem.dtype)
    # A number that all logits of a row share does not matter.
    gap -= xp.sum(gap * present, axis=1, keepdims=True) / xp.sum(present, axis=1, keepdims=True)
    gap *= present
    (right,) = problem.all_reduce(pullback(problem, gap * h, sample.x) - pulled.value())
    return base + inverse.solve(right - problem.penalty(base)), inverse


def regressed(
    problem: Problem, base: Array, logits: Array, rows: np.ndarray, *, seed: int = 0
) -> tuple[Array, Inverse | None]:
    """Follow given logits of some rows: a ridge regression of what the base misses of them.

    A Newton step would take in the labels of these rows alone, which says little of the others
    where parameters are many: its noise is that of a probe fitted to them. What an old probe says
    of a row has no noise, and a few rows for each feature tell how a representation moved.

    The ridge is a hundredth of the mean feature variance: directions that vary less, or that the
    rows do not span, stay as in the base.

    Args:
        problem: the family.
        base: parameters `(m, p)`.
        logits: the old logits `(m, k, r)`; those of classes without rows are ignored.
        rows: which of this rank's rows they are of, host `(r,)`.
        seed: of the draw.

    Returns:
        The parameters, `(m, p)` float64, and a preconditioner near them, or None if the rows are
        fewer than it is built from: it would take more inner iterations than it saves.
    """
    xp, f64 = problem.xp, problem.xp.float64
    source = problem.rows.subset(rows)
    z = _cleaned(problem, logits)
    present = cast(problem.absent == 0, problem.dtype)[:, :, None]
    centre = problem.centre(xp.mean(problem.mean, axis=0))
    pulled, gram, total = Pullback(problem, problem.m), 0.0, 0.0
    for span, x in source.blocks(problem.m * problem.k):
        missed = z[:, :, span] - problem.directions(base, x)
        # A number that all logits of a row share does not matter.
        missed -= xp.sum(missed * present, axis=1, keepdims=True) / xp.sum(
            present, axis=1, keepdims=True
        )
        missed *= present
        x = x - cast(centre, problem.dtype)
        pulled.add(missed, x)
        gram = gram + cast(xp.matrix_transpose(x) @ x, f64)
        total = total + cast(xp.sum(x, axis=0), f64)
    both, gram, total, count = problem.all_reduce(
        pulled.value(), gram, total, np.asarray(float(len(rows)))
    )
    count = float(count)
    right, shift = problem.split(both)
    mean, shift = problem.centre(total / count), shift / count
    gram = gram / count - mean[:, None] * mean[None, :]
    eye = xp.eye(problem.d, dtype=f64, device=gram.device)
    ridge = RIDGE * xp.sum(gram * eye) / problem.d + 1e-300
    change = (right / count - shift[:, :, None] * mean) @ inverse_spd(gram + ridge * eye)
    moved = base + problem.join(change, shift - change @ (centre + mean))
    if count < _sampled(problem):
        return moved, None
    p = softmax_(z + problem.absent[:, :, None])
    sample = _drawn(problem, source, p, _share(problem, rows), seed)
    return moved, Curvature().build(sample)


def _cleaned(problem: Problem, logits: Array) -> Array:
    """The logits in the compute dtype, 0 where they are not finite or a class has no rows."""
    xp, z = problem.xp, cast(logits, problem.dtype)
    return xp.where(xp.isfinite(z) & (problem.absent[:, :, None] == 0), z, 0.0)


def _share(problem: Problem, rows: np.ndarray) -> Array:
    """The weights of these rows, which stand for all of this rank's, as shares of all ranks'.

    A rank may remember fewer of its rows than another.
    """
    share = problem.weights_at(rows) * (problem.rows.n / max(len(rows), 1))
    return share / problem.all_reduce(problem.xp.sum(share, axis=1, keepdims=True))[0]


def _sampled(problem: Problem) -> int:
    """Rows of the sample that a start's preconditioner is built from."""
    return max(1500, 3 * min(problem.d, 1024) // 2)


def _drawn(problem: Problem, source: Source, p: Array, share: Array, seed: int) -> Sample:
    """A sample of the rows of a source with probabilities `p` `(m, k, r)`."""
    xp, size = problem.xp, _sampled(problem)
    uncertainty = 1.0 - xp.sum(p * p, axis=1)
    index, inclusion = draw_rows(uncertainty, share, size, generator(seed), problem.communicator)
    own, drawn = problem.communicator.span(index.shape[0])
    take, x = beside(index, p), source.take(index)
    p, share = xp.take(p, take, axis=2), xp.take(share, take, axis=1)
    inclusion = cast(beside(inclusion, p), problem.dtype)
    return Sample(problem, index, own, drawn, x, p, share, inclusion)


def _objective(problem: Problem, w: Array, index: np.ndarray) -> Array:
    """`F` on a sample, whose host index is among all ranks' rows, `(m,)`."""
    xp = problem.xp
    index = local(index, problem.own)
    p = softmax_(problem.logits(w, problem.rows.take(index)))
    p = pick(p, problem.labels_at(index))
    loss = -xp.log(xp.clip(cast(p, xp.float64), 1e-30, None))
    weights, _ = problem.split(w)
    penalty = 0.5 * problem.l2 * xp.sum(weights * weights, axis=(1, 2))
    share = cast(problem.weights_at(index), xp.float64)
    loss, total = problem.all_reduce(xp.sum(loss * share, axis=1), xp.sum(share, axis=1))
    return loss / xp.where(total > 0, total, 1.0) + penalty
