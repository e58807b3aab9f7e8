"""Products with blocks of rows: threads share the rows, and a block stays in cache.

The numbers behind the constants are in `docs/decisions/row_blocks.md`.
"""

from __future__ import annotations

import numpy as np
import torch

from convexprobe.arrays import split_products
from convexprobe.arrays.backend import Array, on_cpu

_FEW = 64
"""Rows of a left factor up to which MKL's own threads help a product little."""

_PART = 32
"""The least rows that a thread is given to multiply."""

_TURNED = range(7, 49)
"""Rows of a left factor with which MKL computes `x a^T` faster than its transpose."""

_CALL, _ONE_ROW = 2e5, 1 << 21
"""Multiplications up to which NumPy's own product takes less time than handing it to torch, whose
MKL is up to three times faster for thin products; and those of a product with one row, which waits
for memory, so that only several threads make it faster."""

_ADDED = 256
"""Rows, or classes if those are more, whose sums by class add up in the compute dtype."""


def dot_rows(a: Array, x: Array, out: Array | None = None) -> Array:
    """`a x^T`, `(q, r)`: rows of `a` `(q, d)` with rows of `x` `(r, d)`.

    On a CPU with few rows in `a` each thread multiplies a part of `x`. Tensors of rows may be in
    half precision, with `a` in float32: see `split_products`.

    Args:
        a, x: the factors.
        out: an array `(q, r)` with contiguous rows to write to and to return, or None for a new
            one.
    """
    if isinstance(x, np.ndarray):
        if _is_small(a, x):
            return np.matmul(a, x.T, out=out)
        into = None if out is None else torch.from_dlpack(out)
        made = dot_rows(torch.from_dlpack(a), torch.from_dlpack(x), into)
        return made.numpy() if out is None else out
    if not isinstance(x, torch.Tensor):
        if out is None:
            return a @ x.T
        out[...] = a @ x.T
        return out
    if x.dtype in split_products.WAYS:
        return split_products.product(a, x.T, out)
    parts, (q, d), r = _parts(a, x), a.shape, x.shape[0]
    turned = q in _TURNED and x.device.type == "cpu"
    if parts <= 1 and not turned:
        return torch.mm(a, x.T, out=out)
    if out is None:
        out = x.new_empty((q, r))
    if parts <= 1:
        return out.copy_((x @ a.T).T)
    even = r - r % parts
    blocks = x[:even].reshape(parts, -1, d)
    products = (blocks @ a.T).mT if turned else a.expand(parts, q, d) @ blocks.mT
    out[:, :even].view(q, parts, -1).copy_(products.transpose(0, 1))
    if even < r:
        out[:, even:] = a @ x[even:].T
    return out


def combine_rows(a: Array, x: Array) -> Array:
    """`a x`, `(q, d)`: linear combinations of the rows of `x` `(r, d)`; see `dot_rows`."""
    if isinstance(x, np.ndarray):
        if _is_small(a, x):
            return a @ x
        return combine_rows(torch.from_dlpack(a), torch.from_dlpack(x)).numpy()
    if isinstance(x, torch.Tensor) and x.dtype in split_products.WAYS:
        return split_products.product(a, x)
    parts = _parts(a, x)
    if parts <= 1:
        return a @ x
    (q, r), d = a.shape, x.shape[1]
    even = r - r % parts
    shares = a[:, :even].reshape(q, parts, -1).transpose(0, 1)
    out = (shares @ x[:even].reshape(parts, -1, d)).sum(0)
    return out if even == r else out + a[:, even:] @ x[even:]


def adds_by_class(x: Array) -> bool:
    """Whether `sum_by_class` takes such arrays: on a CPU it always adds in the same order."""
    return isinstance(x, (np.ndarray, torch.Tensor)) and on_cpu(x)


def sum_by_class(x: Array, labels: Array, k: int) -> Array:
    """The sum of the rows `x` `(r, d)` of each class, `(k, d)` float64, for class indices `(r,)`.

    It takes as long as reading the rows; a product with indicators has `2 k d` flops a row.
    """
    if isinstance(x, np.ndarray):
        return sum_by_class(torch.from_dlpack(x), torch.from_dlpack(labels), k).numpy()
    total = x.new_zeros((k, x.shape[1]), dtype=torch.float64)
    part = x.new_empty(total.shape)
    step = max(_ADDED, k)
    for rows, own in zip(x.split(step), labels.split(step), strict=True):
        total += part.zero_().index_add_(0, own, rows)
    return total


def _is_small(a: np.ndarray, x: np.ndarray) -> bool:
    if a.shape[0] == 1:
        return x.size <= _ONE_ROW or torch.get_num_threads() == 1
    return a.shape[0] * x.size <= _CALL


def _parts(a: Array, x: Array) -> int:
    """Into how many parts the rows of `x` are split, one a thread; 0 where none ever pays."""
    if not isinstance(x, torch.Tensor) or x.device.type != "cpu" or x.dtype != torch.float32:
        return 0
    most = x.shape[0] // _PART if a.shape[0] <= _FEW else 1
    return max(min(torch.get_num_threads(), most), 1)


def block_rows(columns: int, reference: Array) -> int:
    """Rows of a block that stays in cache between its two products; far more on a GPU."""
    target, least, most = (5 << 20, 64, 8192) if on_cpu(reference) else (1 << 28, 512, 1 << 17)
    return min(max(target // (4 * max(columns, 1)), least), most)
