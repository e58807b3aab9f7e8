"""The objective: regularised softmax loss of a family of tasks over one matrix of activations.

For each task (labels `y`, row weights `s` with `S = sum s_i`, penalty `l2`), with
`z_i = W x_i + b`,

    F(W, b) = (1/S) sum_i s_i [ logsumexp(z_i) - z_i[y_i] ] + (l2/2) ||W||^2,

the bias not penalised, or held at 0 in a family without biases. With `P_i = softmax(z_i)` and
residuals `R = P - Y`,

    grad_W F = (1/S) sum_i s_i R_i x_i^T + l2 W,        grad_b F = (1/S) sum_i s_i R_i,
    (H v)_i  = (1/S) sum_i s_i (diag P_i - P_i P_i^T)(V x_i + c) [x_i; 1]^T + l2 [V; 0].

Shapes are those of `problem.linear_model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import repeat
from typing import NamedTuple, Self

import numpy as np

from convexprobe.activations.source import in_smaller_blocks
from convexprobe.arrays.backend import (
    Array,
    cast,
    epsilon,
    like,
    to_numpy,
    to_numpy_together,
)
from convexprobe.arrays.elementwise import minus_one_hot_
from convexprobe.arrays.ranks import local
from convexprobe.problem.linear_model import LinearModel
from convexprobe.problem.pullback import Pullback, pullback
from convexprobe.problem.softmax import best_row_terms, ray_terms, row_loss, softmax_

CHECKED = 32
"""Rows whose logits are checked against float64 in every evaluation."""


Measure = Callable[[Array], tuple[Array, ...]]
"""Steps `(m,)` -> value, slope and curvature along a ray, `(m,)` each."""


@dataclass(frozen=True)
class HostNumbers:
    """The numbers of an evaluation that decisions need, host `(m,)` each, in nats.

    Attributes:
        value, loss, rounding, doubt: those of the evaluation.
        estimated_gap: as `certificate.estimated_gap` has it.
        bound: the lower bound without a sample, or None if it was not computed yet.
    """

    value: np.ndarray
    loss: np.ndarray
    rounding: np.ndarray
    doubt: np.ndarray
    estimated_gap: np.ndarray
    bound: np.ndarray | None


@dataclass(frozen=True)
class Evaluation:
    """What one pass at `w` yields, per task.

    Attributes:
        w: the point, `(m, p)`, rounded to the compute dtype, as it was multiplied.
        value: `F(w)`, nats, `(m,)` float64.
        loss: the mean cross-entropy alone, nats, `(m,)` float64.
        gradient: `(m, p)` float64.
        entropy: weighted mean entropy of `P_i`, nats, `(m,)` float64.
        uncertainty: `1 - sum_k P_ik^2` of each row, `(m, n)`: its share of the curvature.
        rounding: estimate of the rounding error of `value`, nats, `(m,)` float64.
        doubt: `||e||^2 / (2 l2)` for the gradient's estimated rounding error `e`, nats, `(m,)`
            float64: what it may add to the cost in a lower bound.
        logits: `(m, k, n)` in the compute dtype, if they were kept for a line search.
        host: what `solvers.certifier.read` read of it, if it did.
    """

    w: Array
    value: Array
    loss: Array
    gradient: Array
    entropy: Array
    uncertainty: Array
    rounding: Array
    doubt: Array
    logits: Array = None
    host: HostNumbers | None = None


class _Checked(NamedTuple):
    """Rows whose rounding is measured: host index, index on the device, as multiplied, float64."""

    host: np.ndarray
    at: Array
    narrow: Array
    x: Array
    size: Array  # |x|


class Problem(LinearModel):
    """A family of `m` convex tasks over one source of rows; `LinearModel` has its data."""

    _checked: _Checked | None = None
    _known: Evaluation | None = None

    def start_from(self, at: Evaluation, other: Problem) -> Array:
        """Take over an evaluation of the same tasks at other penalties; returns its point `(m, p)`.

        The first `evaluate` of that very array then reads no rows: only the penalty's part differs.

        Args:
            at: the evaluation, with its logits if the family keeps them.
            other: the family that made it, whose penalties are above 0.
        """
        weights, _ = self.split(at.w)
        self._known = replace(
            at,
            value=at.loss + 0.5 * self.l2 * self.xp.sum(weights * weights, axis=(1, 2)),
            gradient=at.gradient - other.penalty(at.w) + self.penalty(at.w),
            doubt=self.over_penalty(2.0 * other.l2 * at.doubt, 0.0),
            host=None,
        )
        return at.w

    def take_tasks(self, index: list[int], l2: np.ndarray | None = None) -> Self:
        """As `LinearModel` has it; an evaluation taken over stays behind."""
        out = super().take_tasks(index, l2)
        out._known = None
        return out

    def evaluate(self, w: Array, *, logits: Array | None = None, keep: bool = False) -> Evaluation:
        """Value, gradient and what certificates need at `w`, reading the rows once: one pass.

        Args:
            w: the point, `(m, p)`.
            logits: its logits `(m, k, n)`, if they are known: then half a pass, and they are kept.
            keep: whether to keep the logits, `4 m k n` bytes in float32, if the family
                `keeps_logits`.
        """
        xp, keep = self.xp, keep and self.keeps_logits
        if self._known is not None and w is self._known.w:
            known, self._known = self._known, None
            return known
        if logits is None:
            w = cast(cast(w, self.dtype), xp.float64)  # what is reported is what is multiplied
        weights, _ = self.split(w)
        if logits is None and not bool(xp.any(weights != 0)):
            return self._evaluate_constant(w, keep=keep)
        sums, uncertainty, kept = self._sums(w, logits, keep=keep)
        gradient, loss, entropy, scale, error, sizes, checked = self.all_reduce(*sums)
        gradient = gradient / self.total[:, None]
        loss, entropy, scale = loss / self.total, entropy / self.total, scale / self.total
        return Evaluation(
            w=w,
            value=loss + 0.5 * self.l2 * xp.sum(weights * weights, axis=(1, 2)),
            loss=loss,
            gradient=gradient + self.penalty(w),
            entropy=entropy,
            uncertainty=uncertainty,
            rounding=2.0 * epsilon(self.dtype, w) * (scale + loss) + error / checked,
            doubt=self._doubt(sizes / checked[:, None]),
            logits=kept,
        )

    @in_smaller_blocks
    def _sums(
        self, w: Array, logits: Array | None, *, keep: bool
    ) -> tuple[tuple[Array, ...], Array, Array | None]:
        """This rank's part of an evaluation: the sums over its rows that `evaluate` reduces, its
        rows' uncertainties, and its logits if they are kept."""
        xp, f64 = self.xp, self.xp.float64
        pulled = Pullback(self, self.m)
        loss = entropy = scale = xp.zeros((self.m,), dtype=f64, device=w.device)
        uncertainty = xp.empty((self.m, self.rows.n), dtype=self.dtype, device=w.device)
        kept = self.empty_logits(w) if keep and logits is None else logits
        for span, x in self.blocks(once=logits is not None):
            z = None if kept is None else kept[:, :, span]
            if logits is None:
                z = self.logits(w, x, z)
            weights = None if self.weights is None else self.weights_at(span)
            terms = best_row_terms(z, self.labels_at(span), weights)
            uncertainty[:, span] = terms.uncertainty
            loss = loss + xp.sum(terms.loss, axis=1, dtype=f64)
            entropy = entropy + xp.sum(terms.entropy, axis=1, dtype=f64)
            scale = scale + xp.sum(xp.abs(terms.largest), axis=1, dtype=f64)
            pulled.add(terms.residual, x)
        sums = (pulled.value(), loss, entropy, scale, *self._rounding(w, logits))
        return sums, uncertainty, kept

    def _checked_rows(self) -> _Checked:
        """The rows that `_rounding` looks at, gathered once: they stand for all in every task."""
        if self._checked is None:
            xp = self.xp
            index = local(np.arange(0, self.n, max(1, self.n // CHECKED)), self.own)
            if self.weights is not None and self.rows.n:  # the heaviest may be most of the sum
                index = np.union1d(index, to_numpy(xp.argmax(self.weights, axis=1)))
            narrow = self.rows.take(index)
            x = cast(narrow, xp.float64)
            self._checked = _Checked(index, like(index, x), narrow, x, xp.abs(x))
        return self._checked

    def _rounding(self, w: Array, logits: Array | None) -> tuple[Array, Array, Array]:
        """How far rounding moves the losses and gradients of a few rows: this rank's weighted sums.

        A loss moves by no more than the error of its row's logits. In float32 that is measured
        against float64; in float64 it is the spacing of the terms that add up to a logit. (Either
        matters where features have a large mean, whose share the bias cancels.) A gradient's entry
        moves by the spacing at its terms' mean size.

        Returns:
            Errors of the losses `(m,)`, sizes `|R_i| |x_i|` of the gradient's terms `(m, k d)`, and
            the rows' weights `(m or 1,)`.
        """
        xp, f64, m = self.xp, self.xp.float64, w.shape[0]
        checked = self._checked_rows()
        x, w = checked.x, cast(cast(w, self.dtype), f64)
        weights, bias = self.split(w)
        if self.k == 2:
            half = 0.5 * (weights[:, 1, :] - weights[:, 0, :])
            weights = xp.stack([-half, half], axis=1)
        flat, shape = xp.reshape(weights, (m * self.k, self.d)), (m, self.k, x.shape[0])
        exact = xp.reshape(flat @ x.T, shape) + (bias + cast(self.absent, f64))[:, :, None]
        if self.dtype == f64:
            terms = xp.reshape(xp.abs(flat) @ checked.size.T, shape) + xp.abs(bias)[:, :, None]
            error = epsilon(f64, w) * terms
        else:
            rows = checked.narrow
            if self.multiplies_narrow:  # by the product that makes the logits
                rows = cast(rows, self.rows.reference.dtype)
            known = logits is not None
            z = xp.take(logits, checked.at, axis=2) if known else self._logits(w, rows)
            error = xp.abs(cast(z, f64) - exact)
        share = cast(self.weights_at(checked.host), f64)
        residual = minus_one_hot_(softmax_(exact), xp.take(self.labels, checked.at, axis=1))
        residual = residual * share[:, None, :]
        sizes = xp.reshape(xp.abs(residual), (m * self.k, -1)) @ checked.size
        return (
            xp.sum(xp.max(error, axis=1) * share, axis=1),
            xp.reshape(sizes, (m, -1)),
            xp.sum(share, axis=1),
        )

    def _doubt(self, sizes: Array) -> Array:
        """`||error||^2 / (2 l2)` of a gradient whose terms have these mean sizes, `(m, k d)`."""
        square = (epsilon(self.dtype, sizes) ** 2) * self.xp.sum(sizes * sizes, axis=1)
        return self.over_penalty(square, 0.0)

    def _evaluate_constant(self, w: Array, *, keep: bool) -> Evaluation:
        """An evaluation without weights, where all rows have one distribution: no pass, as the
        moments say the rest."""
        xp = self.xp
        _, bias = self.split(w)
        z = bias + cast(self.absent, w.dtype)
        largest = xp.max(z, axis=1, keepdims=True)
        z = z - largest
        p = softmax_(xp.asarray(z, copy=True))
        log_p = z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))
        loss = -xp.sum(xp.where(self.frequency > 0, self.frequency * log_p, 0.0), axis=1)
        gradient = p[:, :, None] * self.mean[:, None, :] - self.moment
        row = cast(1.0 - xp.sum(p * p, axis=1), self.dtype)[:, None]
        _, sizes, checked = self.all_reduce(*self._rounding(w, None))
        moments = xp.abs(p[:, :, None] * self.mean[:, None, :]) + xp.abs(self.moment)
        sizes = sizes / checked[:, None] + xp.reshape(moments, (self.m, -1))
        logits = None
        if keep:
            z = cast(bias, self.dtype) + self.absent
            shape = (self.m, self.k, self.rows.n)
            logits = xp.asarray(xp.broadcast_to(z[:, :, None], shape), copy=True)
        return Evaluation(
            w=w,
            value=loss,
            loss=loss,
            gradient=self.join(gradient, p - self.frequency),
            entropy=-xp.sum(p * xp.where(p > 0, log_p, 0.0), axis=1),
            uncertainty=xp.broadcast_to(row, (self.m, self.rows.n)),
            rounding=2.0 * epsilon(self.dtype, w) * (xp.abs(largest[:, 0]) + loss),
            doubt=self._doubt(sizes),
            logits=logits,
        )

    def ray(self, at: Evaluation, direction: Array, dz: Array) -> Measure:
        """`F(w - t d)` and its first two derivatives by `t`, as a function of `t` `(m,)`.

        Each is `(m,)` float64 and needs no product with rows.

        Args:
            at: the evaluation at `w`, with its logits.
            direction: `d`, `(m, p)`.
            dz: its `logit_change`.
        """
        xp, f64, penalty = self.xp, self.xp.float64, self.penalty_along(at.w, direction)
        spans = list(self.rows.spans(self.m * self.k))

        def measure(t: Array) -> tuple[Array, ...]:
            sums = [xp.zeros((self.m,), dtype=f64, device=dz.device) for _ in range(3)]
            for span in spans:
                z, change = at.logits[:, :, span], dz[:, :, span]
                for i, rows in enumerate(ray_terms(z, change, t, self.labels_at(span))):
                    sums[i] = sums[i] + self.row_sum(rows, span)
            means = [total / self.total for total in self.all_reduce(*sums)]
            return tuple(mean + own for mean, own in zip(means, penalty(t), strict=True))

        return measure

    def penalty_along(self, w: Array, direction: Array) -> Measure:
        """The penalty at `w - t d` and its first two derivatives by `t`, as a function of `t`."""
        xp, l2 = self.xp, self.l2
        (w, _), (d, _) = self.split(w), self.split(direction)
        square, cross, own = (xp.sum(a * b, axis=(1, 2)) for a, b in ((w, w), (w, d), (d, d)))

        def penalty(t: Array) -> tuple[Array, ...]:
            value = 0.5 * l2 * (square - t * (2.0 * cross - t * own))
            return value, l2 * (t * own - cross), l2 * own

        return penalty

    def errors(self, w: Array) -> np.ndarray:
        """Weighted fraction of rows that are misclassified, host `(m,)`; see `judge`."""
        return self.judge(w)[2]

    def judge(self, w: Array, logits: Array | None = None) -> tuple[np.ndarray, ...]:
        """Mean cross-entropy and objective, both in nats, and weighted fraction of misclassified
        rows, host `(m,)` each.

        The predicted class is the first of those with the largest logit, as `numpy.argmax` has it.
        Half a pass, or none if the logits `(m, k, n)` at `w` are given.
        """
        loss, wrong = self.all_reduce(*self._judge(w, logits))
        weights, _ = self.split(w)
        square = self.xp.sum(weights * weights, axis=(1, 2))
        loss, wrong, square = to_numpy_together(loss / self.total, wrong / self.total, square)
        return loss, loss + 0.5 * self.host_l2 * square, wrong

    @in_smaller_blocks
    def _judge(self, w: Array, logits: Array | None) -> tuple[Array, Array]:
        """The loss of this rank's rows, and the weight of those misclassified, `(m,)` each."""
        xp = self.xp
        loss = wrong = xp.zeros((self.m,), dtype=xp.float64, device=w.device)
        spans = zip(self.rows.spans(self.m * self.k), repeat(None))
        for span, x in self.blocks(once=True) if logits is None else spans:
            z = self.logits(w, x) if logits is None else logits[:, :, span]
            labels = self.labels_at(span)
            bad = cast(xp.argmax(z, axis=1) != labels, self.dtype)
            wrong = wrong + self.row_sum(bad, span)
            loss = loss + self.row_sum(row_loss(z, labels), span)
        return loss, wrong

    def batch_gradient(self, w: Array, index: np.ndarray) -> Array:
        """Unbiased gradient `(m, p)` from the rows of a host index; `len(index) / n` passes."""
        own = local(index, self.own)
        x = self.rows.take(own)
        p = minus_one_hot_(softmax_(self.logits(w, x)), self.labels_at(own))
        if self.weights is not None:
            p *= self.weights_at(own)[:, None, :]
        scale = self.n / (len(index) * self.total[:, None])
        (total,) = self.all_reduce(pullback(self, p, x))
        return total * scale + self.penalty(w)
