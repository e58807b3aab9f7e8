"""What a device can do at most: published for accelerators, measured for this processor.

An operation takes the longest of its launch, its arithmetic and its bytes. That is a lower bound:
no kernel reaches all of its ceiling. (What reaches less on a real device is not known here.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.roofline.counter import Operation

LAUNCH = 5e-6
"""Seconds from one launch of a kernel to the next."""

LINK = 64e9
"""Bytes/s between host and device: PCIe 5 with 16 lanes, one way."""

COLUMNS = {"_linalg_eigh": 1, "linalg_cholesky_ex": 32, "cholesky_inverse": 32,
           "linalg_inv_ex": 32, "_linalg_solve_ex": 32}  # fmt: skip
"""Columns that a decomposition does in one launch, each waiting for the one before: a
tridiagonalisation has a product with the rest of the matrix for every column, a blocked
factorisation one panel after the other."""


@dataclass(frozen=True)
class Ceilings:
    """The ceilings of a device.

    Attributes:
        name: of the device.
        bandwidth: bytes/s of its memory.
        flops: flop/s of products, by dtype.
        launch: seconds of a call, whatever its size.
    """

    name: str
    bandwidth: float
    flops: dict[str, float]
    launch: float = LAUNCH

    def seconds(self, operation: Operation) -> float:
        """The least that an operation takes."""
        if operation.kind in ("read", "sent"):
            return self.launch + operation.written / LINK
        moved = operation.bytes / self.bandwidth
        if operation.kind == "product":
            return max(self.launch, moved, operation.flops / self.flops[operation.dtype])
        if operation.kind == "decomposition":
            steps = -(-operation.shapes[0][-1] // COLUMNS[operation.name])
            arithmetic = operation.flops / self.flops[operation.dtype]
            return max(steps * self.launch, moved, arithmetic)
        return max(self.launch, moved)

    def total(self, operations: Iterable[Operation]) -> float:
        """The least that operations take one after the other."""
        return sum(map(self.seconds, operations))


_HOPPER = {"float64": 67e12, "float32": 67e12, "tf32": 494.5e12, "bfloat16": 989.5e12,
           "float16": 989.5e12}  # fmt: skip
"""Dense rates; the data sheets print the double of tf32's and 16 bits', with 2:4 sparsity."""

PUBLISHED = {
    "H100": Ceilings("H100 SXM", 3.35e12, _HOPPER),
    "H200": Ceilings("H200 SXM", 4.8e12, _HOPPER),
}
"""NVIDIA's data sheets, https://www.nvidia.com/en-us/data-center/h100/ and .../h200/: 80 GB at 3.35
and 141 GB at 4.8 TB/s; TFLOP/s of both: FP64 34 (tensor cores 67), FP32 67, TF32 989 and BFLOAT16
1 979 with sparsity."""
