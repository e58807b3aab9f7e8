"""What a pass would take at best, and which operations stand between it and that.

An ideal pass reads the stored rows once, touches the logits twice (one write, one read), and
multiplies at the fastest rate that a device has for products as accurate as float32's. Of its
products, its bytes and its launches the longest counts: they can overlap.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

from benchmarks.roofline.ceilings import Ceilings
from benchmarks.roofline.counter import Operation
from benchmarks.roofline.parts import Size

PARTS = {
    "bfloat16": {"tf32": 2, "bfloat16": 3},
    "float16": {"tf32": 2, "float16": 3},
    "float32": {"tf32": 3},
}
"""Products that make one as accurate as float32's, by the dtype of the rows and then of the parts.

Rows in 16 bits are exact in tf32; the other factor is a sum of two numbers of 11 bits or three of
8. (Its parts in float16 need scales.) Of rows in float32, with both factors in two parts, three of
the four products count."""

PASS_CALLS = 3
"""Launches of an ideal pass: logits, what each row adds, and the gradient."""

STEP_CALLS = {
    "change of the logits along a direction": 1,
    "a trial of the line search, and what the host reads of it": 2,
    "what each row adds": 1,
    "gradient, and its sum with the penalty": 2,
    "products with the pairs of L-BFGS, twice, and a system": 3,
    "preconditioner: into its space, scaled, and back": 3,
    "next point": 1,
    "bound, and what the host reads of it": 2,
}
"""Launches of an ideal step, which is one pass."""


def product_rate(size: Size, device: Ceilings) -> float:
    """Flop/s of products as accurate as the compute dtype's, at best."""
    plain = device.flops["float64" if size.dtype == "float64" else "float32"]
    split = [device.flops[dtype] / parts for dtype, parts in PARTS.get(size.dtype, {}).items()]
    return max(plain, *split, 0.0)


def pass_flops(size: Size) -> float:
    """Flops of a pass: of two classes one column of logits says all."""
    return 4.0 * size.n * size.d * (1 if size.k == 2 else size.k)


def pass_bytes(size: Size) -> float:
    """Bytes of a pass: stored rows once, logits in the compute dtype twice."""
    stored = getattr(torch, size.dtype).itemsize
    return float(size.n) * (stored * size.d + 2 * max(stored, 4) * size.k)


def ideal_pass(size: Size, device: Ceilings) -> float:
    """Seconds of a pass at best."""
    products = pass_flops(size) / product_rate(size, device)
    moved = pass_bytes(size) / device.bandwidth
    return max(products, moved, PASS_CALLS * device.launch)


def ideal_solve(size: Size, device: Ceilings, passes: float, steps: int) -> float:
    """Seconds of a solve at best: its passes, or the launches of its steps if they take longer."""
    launches = sum(STEP_CALLS.values()) * steps * device.launch
    return max(passes * ideal_pass(size, device), launches)


def kind_of(operation: Operation, size: Size) -> str:
    """What an operation works on."""
    if operation.kind == "product":
        return "products"
    if operation.kind == "decomposition":
        return "decompositions"
    if operation.kind in ("read", "sent"):
        return "host"
    if operation.function.endswith(".blocks"):
        return "rows converted"
    for shape in operation.shapes:
        if len(shape) > 1 and shape[-2] == size.k and shape[-1] not in (size.d, size.d + 1):
            return "logits"
    return "rest"


def by_kind(
    operations: Iterable[Operation], size: Size, device: Ceilings
) -> dict[str, tuple[int, float, float]]:
    """Calls, bytes and seconds of the operations by what they work on."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for operation in operations:
        kind = sums[kind_of(operation, size)]
        kind[0] += 1
        kind[1] += operation.bytes
        kind[2] += device.seconds(operation)
    return {kind: (int(calls), moved, took) for kind, (calls, moved, took) in sums.items()}
