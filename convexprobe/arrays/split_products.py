"""Products with rows in half precision at the speed of half precision and the accuracy of float32.

Such rows are exact in what tensor cores multiply. The other factor is not, but a sum of two or
three narrow parts is: the parts are multiplied one below the other in one product that adds up in
float32, and then added. The split of a float32 number `a` into narrow parts,

    a_1 = round(a),    a_2 = round(a - a_1),    ...,

is exact step by step (Dekker 1971); three parts of 8 bits hold its 24, two of 11 all but the last
two. Ootomo and Yokota (2022) multiply float32 matrices so on tensor cores.

A way to multiply proves itself before it is used: the first time that a shape is met, it is held
against float64 and timed against the plain product on the block at hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convexprobe.arrays.backend import is_out_of_memory, synchronise

DEVICES = ("cuda",)
"""Kinds of device with tensor cores (ROCm calls itself so, too)."""

LEAST = 1024
"""Rows of a block from which a shape is judged."""

LOOKED_AT = 256
"""Rows and columns of a product that are held against float64."""

WORSE = 4.0
"""How many times the plain product's error that of a faster one may be."""

_TF32_BITS = 13
"""Bits of a float32's mantissa that tf32 lacks."""


@dataclass(frozen=True)
class Parts:
    """A left factor in narrow parts.

    Attributes:
        stacked: the parts one below the other, the largest last, `(parts q, r)`.
        factor: what each part counts relative to the one after it.
        scale: what each row of the product is to be multiplied by, `(q, 1)`, or None.
    """

    stacked: Tensor
    factor: float = 1.0
    scale: Tensor | None = None


@dataclass(frozen=True)
class Way:
    """How to multiply a float32 matrix with a narrow one: how to split it, and the product."""

    split: Callable[[Tensor], Parts]
    multiply: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        """`a b`, `(q, c)` float32, for `a` `(q, r)` float32 and `b` `(r, c)` in half precision,
        written to `out` if that is given."""
        parts = self.split(a)
        products = self.multiply(parts.stacked, b).reshape(-1, a.shape[0], b.shape[1])
        if parts.factor == 1.0:
            return torch.sum(products, 0, out=out)
        small, large = products
        total = torch.add(large, small, alpha=parts.factor, out=out)
        return total if parts.scale is None else total.mul_(parts.scale)


def bfloat16_parts(a: Tensor) -> Parts:
    """Three parts in bfloat16, 8 bits each: exact, but for numbers below 1e-33."""
    q, r = a.shape
    third, second, first = stacked = a.new_empty((3, q, r), dtype=torch.bfloat16)
    first.copy_(a)
    left = a - first
    second.copy_(left)
    torch.sub(left, second, out=third)
    return Parts(stacked.view(3 * q, r))


def float16_parts(a: Tensor) -> Parts:
    """Two parts in float16, 11 bits each: to 2^-23 of a number, or 2^-36 of its row's largest.

    Float16 has a narrow range: rows are scaled by powers of two to at most 1, and the second part,
    which is 2^11 times smaller, by 2^11.
    """
    q, r = a.shape
    _, exponent = torch.frexp(torch.linalg.vector_norm(a, torch.inf, dim=1, keepdim=True))
    scale = torch.ldexp(torch.ones_like(a[:, :1]), exponent.clamp(-126, 127))
    a = a / scale
    second, first = stacked = a.new_empty((2, q, r), dtype=torch.float16)
    first.copy_(a)
    torch.mul(a.sub_(first), 2.0**11, out=second)
    return Parts(stacked.view(2 * q, r), 2.0**-11, scale)


def tf32_parts(a: Tensor) -> Parts:
    """Two parts of 11 bits, in float32: to 2^-23 of a number."""
    q, r = a.shape
    second, first = stacked = a.new_empty((2, q, r))
    _tf32(a, first)
    _tf32(torch.sub(a, first, out=second), second)
    return Parts(stacked.view(2 * q, r))


def _tf32(a: Tensor, out: Tensor) -> None:
    """Write the nearest numbers with 11 bits to `out`."""
    bits = a.contiguous().view(torch.int32) + (1 << (_TF32_BITS - 1))
    torch.bitwise_and(bits, -(1 << _TF32_BITS), out=out.view(torch.int32))


def multiply_narrow(a: Tensor, b: Tensor) -> Tensor:
    """`a b` of matrices in half precision, added up in float32."""
    if a.device.type == "cpu":  # products of such numbers are exact in float32
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)


def multiply_tf32(a: Tensor, b: Tensor) -> Tensor:
    """`a b`, `b` in half precision, for numbers of 11 bits, which tf32 does not round."""
    with tf32_allowed():
        return a @ b.float()


@contextmanager
def tf32_allowed() -> Iterator[None]:
    """Let float32 products use tf32 inside, whatever is set outside."""
    settings: Any = torch.backends.cuda.matmul
    before = settings.allow_tf32
    # torch 2.9 has a second name for it, with a third value that the first one cannot give back
    anew = getattr(settings, "fp32_precision", None)
    if before:
        yield
        return
    settings.allow_tf32 = True
    try:
        yield
    finally:
        settings.allow_tf32 = before
        if anew is not None:
            settings.fp32_precision = anew


WAYS = {
    torch.bfloat16: (Way(bfloat16_parts, multiply_narrow), Way(tf32_parts, multiply_tf32)),
    torch.float16: (Way(float16_parts, multiply_narrow), Way(tf32_parts, multiply_tf32)),
}

_chosen: dict[tuple[Any, ...], Way | None] = {}  # None where the plain product was the fastest


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`a b` in float32, by the fastest way that proved itself for the shape.

    Args:
        a: `(q, r)` float32.
        b: `(r, c)` in half precision: rows, or their transpose.
        out: `(q, c)` float32 with contiguous rows, to be written to; None is a new array.
    """
    turned = not b.is_contiguous()
    d, rows = (b.shape[0], b.shape[1]) if turned else (b.shape[1], b.shape[0])
    key = _key(b, a.shape[0], d, turned)
    if key not in _chosen:
        if rows < LEAST:
            return torch.mm(a, b.to(a.dtype), out=out)
        _chosen[key] = fastest(a, b)
    way = _chosen[key]
    return torch.mm(a, b.to(a.dtype), out=out) if way is None else way(a, b, out)


def pays(reference: Any, q: int) -> bool:
    """Whether rows like these `(n, d)` are to be left in half precision for products with `q` rows.

    So it is where no way has been refused yet; rows elsewhere are better converted once.
    """
    if not isinstance(reference, Tensor) or reference.dtype not in WAYS:
        return False
    if reference.device.type not in DEVICES:
        return False
    d = reference.shape[1]
    return all(_chosen.get(_key(reference, q, d, turned), True) for turned in (False, True))


def _key(b: Tensor, q: int, d: int, turned: bool) -> tuple[Any, ...]:
    return b.device, b.dtype, q, d, turned


def fastest(a: Tensor, b: Tensor) -> Way | None:
    """The fastest way that is about as accurate as the plain product; None is the plain one."""
    least, best = _seconds(lambda: a @ b.to(a.dtype), a), None
    for way in WAYS[b.dtype]:
        try:
            if not is_accurate(way, a, b):
                continue
            seconds = _seconds(lambda way=way: way(a, b), a)  # type: ignore[misc]
        except Exception as error:  # a device or a library without this product
            if is_out_of_memory(error):
                raise
            continue
        if seconds < least:
            least, best = seconds, way
    return best


def is_accurate(way: Way, a: Tensor, b: Tensor) -> bool:
    """Whether a way's largest error, relative to `|a| |b|`, is at most `WORSE` that of the plain
    product, in a corner of `a b`."""
    rows, columns = a[:LOOKED_AT], b[:, :LOOKED_AT]
    exact = rows.double() @ columns.double()
    size = rows.double().abs() @ columns.double().abs() + 1e-300

    def error(found: Tensor) -> float:
        return float(((found.double() - exact).abs() / size).max())

    spacing = torch.finfo(torch.float32).eps
    found = way(a, b)[:LOOKED_AT, :LOOKED_AT]
    return error(found) <= WORSE * max(error(rows @ columns.to(a.dtype)), spacing)


def _seconds(work: Callable[[], Tensor], reference: Tensor) -> float:
    """The least of three times, after a first one."""
    times = []
    for _ in range(4):
        synchronise(reference)
        started = time.perf_counter()
        work()
        synchronise(reference)
        times.append(time.perf_counter() - started)
    return min(times[1:])
