"""The objective: regularised softmax loss of a family of tasks over one matrix of activations.

For each task (labels `y`, row weights `s` with `S = sum s_i`, penalty `l2`), with
`z_i = W x_i + b`,

    F(W, b) = (1/S) sum_i s_i [ logsumexp(z_i) - z_i[y_i] ] + (l2/2) ||W||^2,

the bias not penalised. With `P_i = softmax(z_i)` and residuals `R = P - Y`,

    grad_W F = (1/S) sum_i s_i R_i x_i^T + l2 W,        grad_b F = (1/S) sum_i s_i R_i,
    (H v)_i  = (1/S) sum_i s_i (diag P_i - P_i P_i^T)(V x_i + c) [x_i; 1]^T + l2 [V; 0].

A class without rows has its infimum at bias minus infinity: it is kept out of the softmax, so that
its weights stay zero and no gradient touches them.

Shapes: a family has `m` tasks; `w` is `(m, p)` with `p = k (d + 1)`, the `(k, d)` weights in C
order and then the `k` biases. Logits are laid out `(m, k, rows)`: rows contiguous, so that softmax
runs along the classes at full vector width and both products are plain matrix products (measured
at 50 000 x 10 features: four times faster than `(rows, k)`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convexprobe._array import (
    Array,
    cast,
    compute_dtype,
    epsilon,
    like,
    namespace,
    to_numpy,
)
from convexprobe.family import select
from convexprobe.sources import Rows

_ABSENT = -1e30
"""Logit offset of a class without rows: finite, so that 0 times it is 0 and not NaN."""

_NEGLIGIBLE = -41.0
"""Logit below the largest at which a probability becomes exactly 0.

`exp(-41) = 1.6e-18` is below the spacing of float64 at 1, and its square is still a normal float32:
products with denormal numbers are far slower (one fit: 13.9 s with them, 1.6 s without).
"""

_FLUSH = 2048
"""Rows whose products add up in the compute dtype before float64 takes over."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass at `w` yields, per task.

    Attributes:
        w: the point, `(m, p)`, as it was used (rounded to the compute dtype).
        value: `F(w)`, nats, `(m,)` float64.
        loss: the mean cross-entropy alone, nats, `(m,)` float64.
        gradient: `(m, p)` float64.
        entropy: weighted mean entropy of `P_i`, nats, `(m,)` float64.
        prior: weighted mean of `P_i`, `(m, k)` float64.
        uncertainty: `1 - sum_k P_ik^2` of each row, `(m, n)`: its share of the curvature.
        rounding: estimate of the rounding error of `value`, nats, `(m,)` float64.
    """

    w: Array
    value: Array
    loss: Array
    gradient: Array
    entropy: Array
    prior: Array
    uncertainty: Array
    rounding: Array


class Problem:
    """A family of `m` convex tasks over one source of rows; counts the passes it spends.

    Args:
        rows: the source.
        labels: class indices `0..k-1`, `(n,)` shared or `(m, n)`, on the rows' device.
        l2: penalties, `(m,)` host floats, each at least 0.
        classes: number of classes `k`.
        weights: non-negative row weights, `(n,)` shared or `(m, n)`, or None for equal weights.

    Attributes:
        passes: rows read, in units of all rows read once by a fused value-and-gradient.
        frequency: weighted class frequencies, `(m, k)` float64.
        moment: `(1/S) sum_i s_i Y_i x_i^T`, `(m or 1, k, d)` float64.
        mean: weighted feature mean, `(m or 1, d)` float64.
        label_entropy: `H(Y)`, loss of the best constant classifier, nats, host `(m,)`.
    """

    def __init__(
        self, rows: Rows, labels: Array, l2: Any, *, classes: int, weights: Array | None = None
    ) -> None:
        self.rows, self.k, self.n, self.d = rows, classes, rows.n, rows.d
        self.xp = namespace(rows.matrix)
        self.dtype = compute_dtype(rows.matrix)
        self.labels = labels if labels.ndim == 2 else labels[None, :]
        self.weights = None if weights is None else cast(weights, self.dtype)
        if self.weights is not None and self.weights.ndim == 1:
            self.weights = self.weights[None, :]
        self._l2 = np.atleast_1d(np.asarray(l2, dtype=np.float64))
        self.m = max(
            len(self._l2),
            self.labels.shape[0],
            1 if self.weights is None else self.weights.shape[0],
        )
        self._l2 = np.broadcast_to(self._l2, (self.m,)).copy()
        self.p = self.k * (self.d + 1)
        self._passes = 0.0
        self._parent: Problem | None = None
        self._moments()

    def _moments(self) -> None:
        """Class frequencies, moments and feature mean: half a pass, once."""
        xp, f64 = self.xp, self.xp.float64
        q = max(self.labels.shape[0], 1 if self.weights is None else self.weights.shape[0])
        sums = 0.0
        for span, x in self.rows.blocks(self.m * self.k):
            indicator = cast(self.one_hot(span), self.dtype)
            if self.weights is not None:
                indicator = indicator * self.weights[:, None, span]
            ones = xp.ones((x.shape[0], 1), dtype=self.dtype, device=x.device)
            flat = xp.reshape(indicator, (q * self.k, -1))
            sums = sums + cast(xp.concat([flat @ x, flat @ ones], axis=1), f64)
        totals = xp.reshape(sums, (q, self.k, self.d + 1))
        self.total = xp.sum(totals[:, :, -1], axis=1)  # S, (q,)
        self.moment = totals[:, :, :-1] / self.total[:, None, None]
        self.mean = xp.sum(self.moment, axis=1)
        frequency = totals[:, :, -1] / self.total[:, None]
        self.frequency = self._per_task(frequency)
        self.absent = cast(self.frequency <= 0, self.dtype) * _ABSENT
        host = to_numpy(self.frequency)
        safe = np.where(host > 0, host, 1.0)
        self.label_entropy = -np.sum(host * np.log(safe), axis=1)
        self.spend(0.5)

    def _per_task(self, array: Array) -> Array:
        """A `(1 or m, ...)` array repeated to `(m, ...)`."""
        return self.xp.broadcast_to(array, (self.m, *array.shape[1:]))

    def spend(self, passes: float) -> None:
        """Count work: the one place where passes add up."""
        (self._parent or self)._passes += passes

    @property
    def passes(self) -> float:
        """Rows read so far, by this family and every part of it, in units of all rows."""
        return (self._parent or self)._passes

    @property
    def l2(self) -> Array:
        """Penalties, `(m,)` float64 on the rows' device."""
        return like(self._l2, self.rows.matrix)

    @property
    def host_l2(self) -> np.ndarray:
        """Penalties, `(m,)` on the host."""
        return self._l2

    def tasks(self, index: list[int], l2: np.ndarray | None = None) -> Problem:
        """The family of these tasks (a repeated one with other `l2`); passes add up in this one."""
        out = Problem.__new__(Problem)
        out.__dict__.update(self.__dict__)
        out._parent = self._parent or self
        out.m, out._l2 = len(index), self._l2[index] if l2 is None else l2
        for name in ("labels", "weights", "moment", "mean", "total"):
            array = getattr(self, name)
            if array is not None and array.shape[0] == self.m > 1:
                setattr(out, name, select(array, index))
        out.frequency, out.absent = select(self.frequency, index), select(self.absent, index)
        out.label_entropy = self.label_entropy[index]
        return out

    def one_hot(self, span: slice) -> Array:
        """Booleans `(m or 1, k, rows)`: which class each row of the block has."""
        labels = self.labels[:, span]
        order = self.xp.arange(self.k, dtype=labels.dtype, device=labels.device)
        return labels[:, None, :] == order[None, :, None]

    def split(self, w: Array) -> tuple[Array, Array]:
        """Weights `(m, k, d)` and biases `(m, k)` of `w`."""
        m, cut = w.shape[0], self.k * self.d
        return self.xp.reshape(w[:, :cut], (m, self.k, self.d)), w[:, cut:]

    def join(self, weights: Array, bias: Array) -> Array:
        """`w` from weights `(m, k, d)` and biases `(m, k)`."""
        flat = self.xp.reshape(weights, (weights.shape[0], self.k * self.d))
        return self.xp.concat([flat, bias], axis=1)

    def origin(self) -> Array:
        """The best constant classifier: zero weights, log-frequencies as biases, `(m, p)`."""
        xp = self.xp
        present = self.frequency > 0
        bias = xp.where(present, xp.log(xp.where(present, self.frequency, 1.0)), 0.0)
        zeros = xp.zeros((self.m, self.k, self.d), dtype=xp.float64, device=bias.device)
        return self.join(zeros, bias)

    def logits(self, w: Array, x: Array) -> Array:
        """`W x_i + b` for rows `x` `(r, d)`: `(m, k, r)` in the compute dtype."""
        weights, bias = self.split(w)
        flat = self.xp.reshape(cast(weights, self.dtype), (-1, self.d))
        z = self.xp.reshape(flat @ x.T, (w.shape[0], self.k, x.shape[0]))
        z += (cast(bias, self.dtype) + self.absent)[:, :, None]
        return z

    def pullback(self, residual: Array, x: Array) -> Array:
        """`sum_i R_i [x_i; 1]^T` as `(m, p)` float64, for residuals `(m, k, r)`."""
        total = Pullback(self, residual.shape[0])
        total.add(residual, x)
        return total.value()

    def penalty(self, w: Array) -> Array:
        """`l2 [W; 0]`, `(m, p)`: the gradient of the penalty."""
        weights, bias = self.split(w)
        return self.join(weights * self.l2[:, None, None], bias * 0.0)

    def evaluate(self, w: Array) -> Evaluation:
        """Value, gradient and what certificates need at `w` `(m, p)`: one pass, read once."""
        xp, f64 = self.xp, self.xp.float64
        w = cast(cast(w, self.dtype), f64)  # what is reported is what is multiplied
        pulled = Pullback(self, self.m)
        loss = entropy = scale = xp.zeros((self.m,), dtype=f64, device=w.device)
        uncertainty = []
        for span, x in self.rows.blocks(self.m * self.k):
            z = self.logits(w, x)
            top = xp.max(z, axis=1, keepdims=True)
            z -= top
            p = xp.where(z > _NEGLIGIBLE, xp.exp(z), 0.0)
            total = xp.sum(p, axis=1, keepdims=True)
            p /= total
            log_total = xp.log(total)[:, 0, :]
            correct = self.one_hot(span)
            row_loss = log_total - xp.sum(xp.where(correct, z, xp.zeros_like(z)), axis=1)
            row_entropy = log_total - xp.sum(p * z, axis=1)
            uncertainty.append(1.0 - xp.sum(p * p, axis=1))
            residual = p - cast(correct, self.dtype)
            if self.weights is not None:
                share = self.weights[:, span]
                row_loss, row_entropy = row_loss * share, row_entropy * share
                residual *= share[:, None, :]
                top = top * share[:, None, :]
            loss = loss + xp.sum(row_loss, axis=1, dtype=f64)
            entropy = entropy + xp.sum(row_entropy, axis=1, dtype=f64)
            scale = scale + xp.sum(xp.abs(top[:, 0, :]), axis=1, dtype=f64)
            pulled.add(residual, x)
        self.spend(1.0)
        gradient = pulled.value() / self.total[:, None]
        loss, entropy, scale = loss / self.total, entropy / self.total, scale / self.total
        weights, _ = self.split(w)
        square = xp.sum(weights * weights, axis=(1, 2))
        return Evaluation(
            w=w,
            value=loss + 0.5 * self.l2 * square,
            loss=loss,
            gradient=gradient + self.penalty(w),
            entropy=entropy,
            prior=gradient[:, self.k * self.d :] + self.frequency,
            uncertainty=xp.concat(uncertainty, axis=1),
            rounding=2.0 * epsilon(self.dtype, w) * (scale + loss),
        )

    def errors(self, w: Array) -> np.ndarray:
        """Weighted fraction of rows that are misclassified, host `(m,)`; half a pass."""
        wrong = self.xp.zeros((self.m,), dtype=self.xp.float64, device=w.device)
        for span, x in self.rows.blocks(self.m * self.k):
            z = self.logits(w, x)
            miss = self.xp.where(self.one_hot(span), -self.xp.inf, z)
            hit = self.xp.where(self.one_hot(span), z, -self.xp.inf)
            bad = cast(self.xp.max(miss, axis=1) >= self.xp.max(hit, axis=1), self.dtype)
            bad = bad if self.weights is None else bad * self.weights[:, span]
            wrong = wrong + self.xp.sum(bad, axis=1, dtype=self.xp.float64)
        self.spend(0.5)
        return to_numpy(wrong / self.total)

    def batch_gradient(self, w: Array, index: np.ndarray) -> Array:
        """Unbiased gradient `(m, p)` from the rows of a host index; `len(index) / n` passes."""
        x = self.rows.take(index)
        at = like(index, x)
        p = softmax(self.logits(w, x))
        labels = self.xp.take(self.labels, at, axis=1)
        order = self.xp.arange(self.k, dtype=labels.dtype, device=labels.device)
        p -= cast(labels[:, None, :] == order[None, :, None], self.dtype)
        if self.weights is not None:
            p *= self.xp.take(self.weights, at, axis=1)[:, None, :]
        self.spend(len(index) / self.n)
        scale = self.n / (len(index) * self.total[:, None])
        return self.pullback(p, x) * scale + self.penalty(w)

    def directions(self, v: Array, x: Array) -> Array:
        """`V x_i + c`: logits without the offsets of absent classes."""
        weights, bias = self.split(v)
        flat = self.xp.reshape(cast(weights, self.dtype), (-1, self.d))
        z = self.xp.reshape(flat @ x.T, (v.shape[0], self.k, x.shape[0]))
        return z + cast(bias, self.dtype)[:, :, None]


class Pullback:
    """The sum `sum_i R_i [x_i; 1]^T` over blocks of rows.

    The weights' part adds up in the compute dtype over at most `_FLUSH` rows and then in float64:
    with blocks of few rows, adding each in float64 would cost as much as the products.
    """

    def __init__(self, problem: Problem, m: int) -> None:
        self.problem, self.m, self.rows = problem, m, 0
        self.part: Array = None
        self.weights: Array = 0.0
        self.bias: Array = 0.0

    def add(self, residual: Array, x: Array) -> None:
        """One block: residuals `(m, k, r)` and rows `(r, d)`."""
        xp = self.problem.xp
        flat = xp.reshape(residual, (self.m * self.problem.k, x.shape[0])) @ x
        self.bias = self.bias + xp.sum(residual, axis=2, dtype=xp.float64)
        if self.part is None:
            self.part = flat
        else:
            self.part += flat
        self.rows += x.shape[0]
        if self.rows >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self.part is not None:
            self.weights = self.weights + cast(self.part, self.problem.xp.float64)
        self.part, self.rows = None, 0

    def value(self) -> Array:
        """The sum so far, `(m, p)` float64."""
        self._flush()
        shape = (self.m, self.problem.k, self.problem.d)
        return self.problem.join(self.problem.xp.reshape(self.weights, shape), self.bias)


def softmax(z: Array) -> Array:
    """Probabilities `(m, k, r)` of logits `(m, k, r)`, which it overwrites."""
    xp = namespace(z)
    z -= xp.max(z, axis=1, keepdims=True)
    p = xp.where(z > _NEGLIGIBLE, xp.exp(z), 0.0)
    p /= xp.sum(p, axis=1, keepdims=True)
    return p


def curvature_product(p: Array, u: Array) -> Array:
    """`(diag P_i - P_i P_i^T) u_i` for every row, `(m, k, r)`."""
    r = p * u
    r -= p * namespace(p).sum(r, axis=1, keepdims=True)
    return r
