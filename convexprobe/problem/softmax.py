"""Softmax on logits `(m, k, r)`: probabilities, each row's part of an evaluation, losses on a ray.

Everything here is a function of arrays alone, so that a fused kernel can replace any of it.
"""

from __future__ import annotations

from typing import NamedTuple

from convexprobe.arrays.backend import Array, cast, namespace
from convexprobe.arrays.elementwise import (
    NEGLIGIBLE,
    by_torch_if_large,
    exponential,
    exponential_,
    minus_one_hot_,
    minus_scaled,
    pick,
    sum_of_products,
)
from convexprobe.arrays.fused import fused_row_terms


@by_torch_if_large
def softmax_(z: Array) -> Array:
    """Probabilities `(m, k, r)` of logits `(m, k, r)`, which it overwrites."""
    xp = namespace(z)
    z -= xp.max(z, axis=1, keepdims=True)
    p = exponential_(z, NEGLIGIBLE)
    p /= xp.sum(p, axis=1, keepdims=True)
    return p


@by_torch_if_large
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


@by_torch_if_large
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
    entropy = log_total - sum_of_products(p, z, scratch=z)
    uncertainty = 1.0 - sum_of_products(p, p, scratch=z)
    residual, largest = minus_one_hot_(p, labels), largest[:, 0, :]
    if weights is not None:
        residual *= weights[:, None, :]
        loss, entropy, largest = loss * weights, entropy * weights, largest * weights
    return RowTerms(residual, loss, entropy, uncertainty, largest)


def best_row_terms(z: Array, labels: Array, weights: Array | None = None) -> RowTerms:
    """`row_terms` by the fastest means that agree with it: see `arrays/fused.py`.

    Of two classes, the second's residuals alone, `(m, 1, r)`.
    """
    if z.shape[1] == 2:
        return _two_class_row_terms(z, labels, weights)
    return RowTerms(*fused_row_terms(row_terms, z, labels, weights))


@by_torch_if_large
def row_loss(z: Array, labels: Array) -> Array:
    """`logsumexp(z_i) - z_i[y_i]`, nats, `(m, r)`, of logits `(m, k, r)`."""
    if z.shape[1] == 2:
        return _margin(z[:, 1, :] - z[:, 0, :], labels).loss
    xp = namespace(z)
    z = z - xp.max(z, axis=1, keepdims=True)
    own = pick(z, labels)
    return xp.log(xp.sum(exponential_(z, NEGLIGIBLE), axis=1)) - own


class RayTerms(NamedTuple):
    """Each row's loss on a ray and its first two derivatives by the step, `(m, r)` each."""

    loss: Array
    slope: Array
    curvature: Array


def ray_terms(z: Array, dz: Array, t: Array, labels: Array) -> RayTerms:
    """Each row's loss at `z - t dz` and its first two derivatives by `t`.

    With `P = softmax(z - t dz)`: `logsumexp - own logit`, `dz_y - P dz`, `P dz^2 - (P dz)^2`, for
    logits and their change `(m, k, r)`, steps `(m,)` and class indices `(m or 1, r)`.
    """
    terms = _two_class_ray_terms if z.shape[1] == 2 else _ray_terms
    return terms(z, dz, t, labels)


@by_torch_if_large
def _ray_terms(z: Array, dz: Array, t: Array, labels: Array) -> RayTerms:
    xp = namespace(z)
    z = minus_scaled(z, cast(t, z.dtype), dz)
    z -= xp.max(z, axis=1, keepdims=True)
    own = pick(z, labels)
    p = exponential_(z, NEGLIGIBLE)
    total = xp.sum(p, axis=1)
    p *= dz
    mean = xp.sum(p, axis=1) / total
    p *= dz
    square = xp.sum(p, axis=1) / total
    return RayTerms(xp.log(total) - own, pick(dz, labels) - mean, square - mean * mean)


class _Margin(NamedTuple):
    """What two classes need of `z_1 - z_0`, `(m, r)` each.

    Attributes:
        loss, entropy: as in `RowTerms`.
        residual: of the second class; rounded at its own size, not at 1.
        variance: `P_0 P_1`.
    """

    loss: Array
    entropy: Array
    residual: Array
    variance: Array


def _margin(difference: Array, labels: Array) -> _Margin:
    xp = namespace(difference)
    size, second = xp.abs(difference), labels == 1
    odds = exponential(-size, NEGLIGIBLE)
    likely = 1.0 / (1.0 + odds)
    unlikely = odds * likely
    right = second == (difference > 0)
    residual = xp.where(right, unlikely, likely)
    log_total = xp.log1p(odds)
    return _Margin(
        loss=log_total + xp.where(right, 0.0, size),
        entropy=log_total + unlikely * size,
        residual=xp.where(second, -residual, residual),
        variance=unlikely * likely,
    )


@by_torch_if_large
def _two_class_row_terms(z: Array, labels: Array, weights: Array | None) -> RowTerms:
    xp, at = namespace(z), _margin(z[:, 1, :] - z[:, 0, :], labels)
    loss, entropy, residual, largest = at.loss, at.entropy, at.residual, xp.max(z, axis=1)
    if weights is not None:
        residual = residual * weights
        loss, entropy, largest = loss * weights, entropy * weights, largest * weights
    return RowTerms(residual[:, None, :], loss, entropy, 2.0 * at.variance, largest)


@by_torch_if_large
def _two_class_ray_terms(z: Array, dz: Array, t: Array, labels: Array) -> RayTerms:
    change = dz[:, 1, :] - dz[:, 0, :]
    at = _margin(z[:, 1, :] - z[:, 0, :] - cast(t, z.dtype)[:, None] * change, labels)
    return RayTerms(at.loss, -at.residual * change, at.variance * change * change)
