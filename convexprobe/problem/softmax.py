"""Softmax on logits `(m, k, rows)`: probabilities, curvature, and the loss along a ray."""

from __future__ import annotations

from convexprobe.arrays.backend import Array, cast, namespace

_NEGLIGIBLE = -41.0
"""Logit below the largest at which a probability becomes exactly 0.

`exp(-41) = 1.6e-18` is below the spacing of float64 at 1, and its square is still a normal float32:
products with denormal numbers are far slower (one fit: 13.9 s with them, 1.6 s without).
"""


def centred_exponential(z: Array) -> tuple[Array, Array, Array]:
    """`z - max z`, in place of `z`; its exponential; and the maximum, `(m, 1, r)`."""
    xp = namespace(z)
    top = xp.max(z, axis=1, keepdims=True)
    z -= top
    return z, xp.where(z > _NEGLIGIBLE, xp.exp(z), 0.0), top


def softmax_(z: Array) -> Array:
    """Probabilities `(m, k, r)` of logits `(m, k, r)`, which it overwrites."""
    _, p, _ = centred_exponential(z)
    p /= namespace(z).sum(p, axis=1, keepdims=True)
    return p


def curvature_product(p: Array, u: Array) -> Array:
    """`(diag P_i - P_i P_i^T) u_i` for every row, `(m, k, r)`."""
    r = p * u
    r -= p * namespace(p).sum(r, axis=1, keepdims=True)
    return r


def ray_terms(z: Array, dz: Array, t: Array, correct: Array) -> tuple[Array, Array, Array]:
    """Each row's loss at `z - t dz` and its first two derivatives by `t`, `(m, r)`.

    With `P = softmax(z - t dz)`: `logsumexp - own logit`, `dz_y - P dz`, `P dz^2 - (P dz)^2`.

    Args:
        z, dz: logits and their change, `(m, k, r)`.
        t: step of each task, `(m,)`.
        correct: which class each row has, `(m or 1, k, r)`.
    """
    xp = namespace(z)
    z, p, _ = centred_exponential(z - cast(t, z.dtype)[:, None, None] * dz)
    total = xp.sum(p, axis=1)
    zero = xp.zeros_like(z)
    loss = xp.log(total) - xp.sum(xp.where(correct, z, zero), axis=1)
    weighted = p * dz
    mean = xp.sum(weighted, axis=1) / total
    square = xp.sum(weighted * dz, axis=1) / total
    slope = xp.sum(xp.where(correct, dz, zero), axis=1) - mean
    return loss, slope, square - mean * mean
