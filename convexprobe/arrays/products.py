"""Products with blocks of rows: threads share the rows, and a block stays in cache.

The numbers behind the constants are in `docs/decisions/row_blocks.md`.
"""

from __future__ import annotations

import numpy as np
import torch

from convexprobe.arrays.backend import Array, on_cpu

_FEW = 64
"""Rows of a left factor up to which MKL's own threads help a product little."""

_PART = 32
"""The least rows that a thread is given to multiply."""

_SMALL_MKL, _SMALL_OPENBLAS = 2.5e6, 1e6
"""Multiplications up to which these libraries take a kernel for small products, which is up to
three times faster for `_THIN` left factors."""

_THIN = range(2, 16)
"""Rows of a left factor with which a product is split into small ones."""


def dot_rows(a: Array, x: Array) -> Array:
    """`a x^T`, `(q, r)`: rows of `a` `(q, d)` with rows of `x` `(r, d)`.

    On a CPU with few rows in `a` this is several products, each with a part of `x`: one for every
    thread, or more, so that the library takes its kernel for small products.
    """
    if isinstance(x, np.ndarray):
        step, out = _strip(a, x), np.empty((a.shape[0], x.shape[0]), dtype=x.dtype)
        for i in range(0, x.shape[0], step):
            np.matmul(a, x[i : i + step].T, out=out[:, i : i + step])
        return out
    parts = _parts(a, x)
    if parts and a.shape[0] in _THIN:
        parts = max(parts, min(-(-a.shape[0] * x.numel() // int(_SMALL_MKL)), x.shape[0] // _PART))
    if parts <= 1:
        return a @ x.T
    (q, d), r = a.shape, x.shape[0]
    even = r - r % parts
    out = x.new_empty((q, r))
    products = a.expand(parts, q, d) @ x[:even].reshape(parts, -1, d).mT
    out[:, :even].view(q, parts, -1).copy_(products.transpose(0, 1))
    if even < r:
        out[:, even:] = a @ x[even:].T
    return out


def combine_rows(a: Array, x: Array) -> Array:
    """`a x`, `(q, d)`: linear combinations of the rows of `x` `(r, d)`; see `dot_rows`."""
    if isinstance(x, np.ndarray):
        step = _strip(a, x)
        out = a[:, :step] @ x[:step]
        for i in range(step, x.shape[0], step):
            out += a[:, i : i + step] @ x[i : i + step]
        return out
    parts = _parts(a, x)
    if parts <= 1:
        return a @ x
    (q, r), d = a.shape, x.shape[1]
    even = r - r % parts
    shares = a[:, :even].reshape(q, parts, -1).transpose(0, 1)
    out = (shares @ x[:even].reshape(parts, -1, d)).sum(0)
    return out if even == r else out + a[:, even:] @ x[even:]


def _strip(a: np.ndarray, x: np.ndarray) -> int:
    """How many rows of `x` NumPy multiplies at a time; all, unless a small kernel is faster."""
    q, (r, d) = a.shape[0], x.shape
    return max(int(_SMALL_OPENBLAS / (q * max(d, 1))), 16) if q in _THIN else max(r, 1)


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
