"""Softmax on logits `(m, k, r)`: probabilities, each row's part of an evaluation, losses on a ray.

Everything here is a function of arrays alone, so that a fused kernel can replace any of it.
"""

from __future__ import annotations

from typing import NamedTuple

from convexprobe.arrays.backend import Array, cast, namespace
from convexprobe.arrays.elementwise import NEGLIGIBLE, exponential, minus_one_hot_, pick
from convexprobe.arrays.fused import fused_row_terms


def softmax_(z: Array) -> Array:
    """Probabilities `(m, k, r)` of logits `(m, k, r)`, which it overwrites."""
    xp = namespace(z)
    z -= xp.max(z, axis=1, keepdims=True)
    p = exponential(z, NEGLIGIBLE)
    p /= xp.sum(p, axis=1, keepdims=True)
    return p


def curvature_product(p: Array, u: Array) -> Array:
    """`(diag P_i - P_i P_i^T) u_i` for every row, `(m, k, r)`."""
    r = p * u
    r -= p * namespace(p).sum(r, axis=1, keepdims=True)
    return r


class RowTerms(NamedTuple):
    """What each row adds to an evaluation, times its weight.

    Attributes:
        residual: `P_i - Y_i`, `(m, k, r)`.
        loss: `logsumexp(z_i) - z_i[y_i]`, nats, `(m, r)`.
        entropy: of `P_i`, nats, `(m, r)`.
        uncertainty: `1 - sum_k P_ik^2`, `(m, r)`: without the weight.
        largest: the largest logit, `(m, r)`.
    """

    residual: Array
    loss: Array
    entropy: Array
    uncertainty: Array
    largest: Array


def row_terms(z: Array, labels: Array, weights: Array | None = None) -> RowTerms:
    """The inner block of an evaluation.

    Args:
        z: logits, `(m, k, r)`; not changed.
        labels: class indices, `(m or 1, r)`.
        weights: row weights, `(m or 1, r)`; None counts every row once.
    """
    xp = namespace(z)
    largest = xp.max(z, axis=1, keepdims=True)
    z = z - largest
    p = exponential(z, NEGLIGIBLE)
    total = xp.sum(p, axis=1, keepdims=True)
    p /= total
    log_total = xp.log(total)[:, 0, :]
    loss = log_total - pick(z, labels)
    entropy = log_total - xp.sum(p * z, axis=1)
    uncertainty = 1.0 - xp.sum(p * p, axis=1)
    residual, largest = minus_one_hot_(p, labels), largest[:, 0, :]
    if weights is not None:
        residual *= weights[:, None, :]
        loss, entropy, largest = loss * weights, entropy * weights, largest * weights
    return RowTerms(residual, loss, entropy, uncertainty, largest)


def best_row_terms(z: Array, labels: Array, weights: Array | None = None) -> RowTerms:
    """`row_terms` by the fastest means that agree with it: see `arrays/fused.py`."""
    return RowTerms(*fused_row_terms(row_terms, z, labels, weights))


def row_loss(z: Array, labels: Array) -> Array:
    """`logsumexp(z_i) - z_i[y_i]`, nats, `(m, r)`, of logits `(m, k, r)`."""
    xp = namespace(z)
    z = z - xp.max(z, axis=1, keepdims=True)
    return xp.log(xp.sum(exponential(z, NEGLIGIBLE), axis=1)) - pick(z, labels)


def ray_terms(z: Array, dz: Array, t: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Each row's loss at `z - t dz` and its first two derivatives by `t`, `(m, r)`.

    With `P = softmax(z - t dz)`: `logsumexp - own logit`, `dz_y - P dz`, `P dz^2 - (P dz)^2`, for
    logits and their change `(m, k, r)`, steps `(m,)` and class indices `(m or 1, r)`.
    """
    xp = namespace(z)
    z = z - cast(t, z.dtype)[:, None, None] * dz
    z -= xp.max(z, axis=1, keepdims=True)
    p = exponential(z, NEGLIGIBLE)
    total = xp.sum(p, axis=1)
    loss = xp.log(total) - pick(z, labels)
    p *= dz
    mean = xp.sum(p, axis=1) / total
    p *= dz
    square = xp.sum(p, axis=1) / total
    slope = pick(dz, labels) - mean
    return loss, slope, square - mean * mean
