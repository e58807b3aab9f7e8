"""Elementwise work on logits `(m, k, r)`, in fewer passes than the array standard offers."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch

from convexprobe.arrays.backend import Array, namespace

NEGLIGIBLE = -41.0
"""Logit below the largest at which a probability becomes exactly 0.

`exp(-41) = 1.6e-18` is below the spacing of float64 at 1, and its square is still a normal float32:
products with denormal numbers are many times slower.
"""


LARGE = 1 << 16
"""Numbers in an array of NumPy's from which torch's elementwise kernels save more than it costs to
call them."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def by_torch_if_large(function: _Function) -> _Function:
    """Hand arrays of NumPy to torch, as views, where the first has at least `LARGE` numbers.

    The function takes arrays (or None) by position, and returns an array or a named tuple of
    arrays; it may overwrite what it is given.
    """

    @wraps(function)
    def handed(*arrays: Any) -> Any:
        if not isinstance(arrays[0], np.ndarray) or arrays[0].size < LARGE:
            return function(*arrays)
        found = function(*(a if a is None else _view(a) for a in arrays))
        if isinstance(found, torch.Tensor):
            return found.numpy()
        return type(found)._make(a.numpy() for a in found)

    return handed  # type: ignore[return-value]  # of the same signature


def _view(array: np.ndarray) -> torch.Tensor:
    """A tensor of the same memory; of a copy if it is read-only, about which torch warns."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


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


def exponential_(z: Array, least: float) -> Array:
    """`exponential` of logits that may be overwritten."""
    if isinstance(z, torch.Tensor):
        return torch.threshold_(z, least, -torch.inf).exp_()
    return exponential(z, least)


def minus_scaled(z: Array, t: Array, dz: Array) -> Array:
    """`z - t dz` for logits and their change `(m, k, r)`, and steps `(m,)` of the same dtype."""
    t = t[:, None, None]
    return torch.addcmul(z, t, dz, value=-1.0) if isinstance(z, torch.Tensor) else z - t * dz


def sum_of_products(a: Array, b: Array, scratch: Array) -> Array:
    """`sum_k a b` of arrays `(m, k, r)`, `(m, r)`; overwrites `scratch`, which has their shape."""
    if isinstance(a, torch.Tensor):
        return torch.mul(a, b, out=scratch).sum(dim=1)
    if isinstance(a, np.ndarray):
        return np.multiply(a, b, out=scratch).sum(axis=1)
    return namespace(a).sum(a * b, axis=1)


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
