"""Elementwise work on logits `(m, k, r)`, in fewer passes than the array standard offers."""

from __future__ import annotations

import numpy as np
import torch

from convexprobe.arrays.backend import Array, namespace

NEGLIGIBLE = -41.0
"""Logit below the largest at which a probability becomes exactly 0.

`exp(-41) = 1.6e-18` is below the spacing of float64 at 1, and its square is still a normal float32:
products with denormal numbers are many times slower.
"""


def exponential(z: Array, least: float) -> Array:
    """`exp(z)`, exactly 0 where `z <= least`."""
    if isinstance(z, torch.Tensor):
        return torch.nn.functional.threshold(z, least, -torch.inf).exp_()
    xp = namespace(z)
    return xp.where(z > least, xp.exp(z), 0.0)


def mirrored(half: Array, bias: Array, out: Array) -> Array:
    """Write `bias - half` of the first and `bias + half` of the second class to `out`, `(m, 2, r)`.

    Args:
        half: `(m, r)`.
        bias: `(m, 2, 1)`.
        out: what is written to and returned.
    """
    first, second = bias[:, 0, :], bias[:, 1, :]
    if isinstance(half, (torch.Tensor, np.ndarray)):
        xp = namespace(half)
        xp.subtract(first, half, out=out[:, 0, :])
        xp.add(second, half, out=out[:, 1, :])
    else:
        out[:, 0, :] = first - half
        out[:, 1, :] = second + half
    return out


def pick(z: Array, labels: Array) -> Array:
    """`z[:, y_i, i]` for class indices `(m or 1, r)`: `(m, r)`."""
    if isinstance(z, torch.Tensor):
        index = labels.expand(z.shape[0], -1)[:, None, :]
        return torch.gather(z, 1, index)[:, 0, :]
    if isinstance(z, np.ndarray):
        return z[_own(z, labels)]
    xp = namespace(z)
    return xp.sum(xp.where(one_hot(labels, z.shape[1]), z, xp.zeros_like(z)), axis=1)


def minus_one_hot_(p: Array, labels: Array) -> Array:
    """`p` less 1 at each row's class, in place where the library can."""
    if isinstance(p, torch.Tensor):
        index = labels.expand(p.shape[0], -1)[:, None, :]
        return p.scatter_add_(1, index, p.new_full((1, 1, 1), -1.0).expand(index.shape))
    if isinstance(p, np.ndarray):
        p[_own(p, labels)] -= 1.0
        return p
    xp = namespace(p)
    return p - xp.astype(one_hot(labels, p.shape[1]), p.dtype)


def _own(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """The index of each row's own class in `(m, k, r)`, for class indices `(m or 1, r)`."""
    return np.arange(z.shape[0])[:, None], labels, np.arange(z.shape[2])[None, :]


def one_hot(labels: Array, k: int) -> Array:
    """Booleans `(q, k, r)`: which class each row has, for class indices `(q, r)`."""
    order = namespace(labels).arange(k, dtype=labels.dtype, device=labels.device)
    return labels[:, None, :] == order[None, :, None]
