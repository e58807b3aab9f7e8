"""The inner block of an evaluation as one kernel, on devices that can compile it.

`row_terms` of `problem/softmax.py` is the oracle of every kernel here and what stands in for it: a
kernel is held against it on the first block that it is given, and is never used if it fails there
or differs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch

from convexprobe.arrays.backend import (
    Array,
    epsilon,
    is_cupy,
    is_out_of_memory,
    namespace,
    on_cpu,
)
from convexprobe.arrays.cupy_kernels import cupy_row_terms
from convexprobe.arrays.elementwise import NEGLIGIBLE

Terms: TypeAlias = tuple[Array, ...]
"""Residuals, losses, entropies, uncertainties and largest logits: the fields of `RowTerms`."""

Kernel: TypeAlias = Callable[[Array, Array, Array], Terms]
"""A function of logits, labels and weights (or None), like `row_terms`."""

BOUGHT = 3e10
"""Logits on a device after which torch compiles its kernel: until then they took about as long one
operation at a time as compiling will."""

_seen: dict[torch.device, float] = {}  # logits so far, by device
_trusted: dict[tuple[Any, ...], bool] = {}  # whether a kernel did what the oracle does


def fused_row_terms(
    row_terms: Kernel, z: Array, labels: Array, weights: Array | None = None
) -> Terms:
    """`row_terms` by one kernel, where the device has one that proved itself; else as it is.

    Args:
        row_terms: the function itself.
        z, labels, weights: its arguments.
    """
    if isinstance(z, np.ndarray) or on_cpu(z):
        return row_terms(z, labels, weights)
    if is_cupy(z):
        return proven(_cupy_kernel, row_terms, z, labels, weights)
    if isinstance(z, torch.Tensor) and _pays(z):
        return proven(_torch_kernel, row_terms, z, labels, weights)
    return row_terms(z, labels, weights)


def _pays(z: torch.Tensor) -> bool:
    """Whether so many logits have been seen on a device with Triton that compiling is worth it."""
    _seen[z.device] = _seen.get(z.device, 0.0) + z.numel()
    return _seen[z.device] > BOUGHT and _has_triton()


@cache
def _has_triton() -> bool:
    try:
        from torch.utils._triton import has_triton
    except ImportError:
        return False
    return bool(has_triton())


def proven(
    make: Callable[[], Kernel], row_terms: Kernel, z: Array, labels: Array, weights: Array | None
) -> Terms:
    """What the kernel says of a block, if it once agreed with `row_terms` on such a block, and
    what `row_terms` says if it did not."""
    key = make, z.dtype, z.shape[1], str(z.device), weights is None
    if _trusted.get(key):
        return make()(z, labels, weights)
    expected = row_terms(z, labels, weights)
    if key not in _trusted:
        try:
            with warnings.catch_warnings():  # of what compilers are made of
                warnings.simplefilter("ignore")
                _trusted[key] = _agree(make()(z, labels, weights), expected)
        except Exception as error:  # whatever a compiler says, there is another way
            if is_out_of_memory(error):
                raise
            _trusted[key] = False
    return expected


def _agree(found: Terms, expected: Terms) -> bool:
    """Whether every number is the oracle's to a few roundings of the largest beside it."""
    xp = namespace(expected[0])
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        size = 1.0 + (xp.max(xp.abs(b)) if b.shape[-1] else 0.0)
        far = xp.abs(a - b) > 64.0 * epsilon(b.dtype, b) * size
        if bool(xp.any(far | (xp.isnan(a) != xp.isnan(b)))):
            return False
    return True


def one_expression(z: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None) -> Terms:
    """`row_terms` in a form that compilers fuse: comparisons instead of gathers and scatters."""
    order = torch.arange(z.shape[1], device=z.device)
    own = labels[:, None, :] == order[None, :, None]
    largest = z.amax(dim=1, keepdim=True)
    z = z - largest
    p = torch.where(z > NEGLIGIBLE, z.exp(), 0.0)
    total = p.sum(dim=1, keepdim=True)
    p = p / total
    log_total = total[:, 0, :].log()
    loss = log_total - torch.where(own, z, 0.0).sum(dim=1)
    entropy = log_total - (p * z).sum(dim=1)
    uncertainty = 1.0 - (p * p).sum(dim=1)
    residual, largest = p - own.to(p.dtype), largest[:, 0, :]
    if weights is not None:
        residual = residual * weights[:, None, :]
        loss, entropy, largest = loss * weights, entropy * weights, largest * weights
    return residual, loss, entropy, uncertainty, largest


@cache
def _torch_kernel() -> Kernel:
    kernel: Kernel = torch.compile(one_expression, dynamic=True)
    return kernel


@cache
def _cupy_kernel() -> Kernel:
    terms = cupy_row_terms()
    return lambda z, labels, weights: terms(z, labels, weights, NEGLIGIBLE)
