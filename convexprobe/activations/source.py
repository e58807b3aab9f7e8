"""Sources of rows: the interface that solvers read rows through, and rows in memory."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from convexprobe.arrays.backend import (
    Array,
    beside,
    cast,
    compute_dtype,
    contiguous_rows,
    convert,
    device,
    is_out_of_memory,
    namespace,
)
from convexprobe.arrays.products import block_rows

_ONCE = 2048
"""Rows of a block whose products add up in the compute dtype, at most, unless a cache decides."""


class Source(ABC):
    """Activations `X`, shape `(n, d)`, read in blocks of rows.

    Blocks and gathered rows have the compute dtype (float64 for float64, float32 for everything
    narrower) and are on the device where they are multiplied. The next block overwrites a block.

    Attributes:
        reference: an array of the rows' library, stored dtype and device; it may have no rows.
        n: number of rows.
        d: number of features.
        capacity: rows that may be gathered and held at a time.
        room: bytes that logits of its rows may take where they are multiplied.
        most_rows: the most rows of a block; by default what stays in the cache decides alone.
        streamed: whether every reading brings the rows from elsewhere.
        has_narrow: whether `blocks` takes `narrow=True`, for blocks in the stored dtype.
    """

    reference: Array
    n: int
    d: int
    capacity: int
    room = float("inf")
    most_rows = sys.maxsize
    streamed = False
    has_narrow = False
    _halvings = 0

    @abstractmethod
    def blocks(self, columns: int = 0, *, once: bool = False) -> Iterator[tuple[slice, Array]]:
        """Row slices and their rows, in order; each row is used with `columns` logits.

        Rows that are multiplied `once` need not stay in the cache: their blocks may be longer.
        """

    @abstractmethod
    def take(self, index: Array) -> Array:
        """The rows `(s, d)` of a host index; or of one on their device, ascending, none twice."""

    @abstractmethod
    def subset(self, index: np.ndarray) -> Source:
        """The rows of a host index, as a source."""

    def block(self, columns: int) -> int:
        """The rows of a block with so many columns."""
        rows = min(block_rows(columns, self.reference), self.most_rows)
        return max(rows >> self._halvings, 1)

    def spans(self, columns: int) -> Iterator[slice]:
        """The row slices of blocks with so many columns, in order.

        A source without rows (a rank may hold none) has one empty slice, so that sums get their
        shape.
        """
        return self._slices(self.block(columns))

    def _slices(self, size: int) -> Iterator[slice]:
        for start in range(0, max(self.n, 1), size):
            yield slice(start, min(start + size, self.n))

    def conversion_buffer(self, rows: int) -> Array:
        """An array to convert so many rows into; empty where rows need no conversion."""
        dtype = compute_dtype(self.reference)
        if dtype == self.reference.dtype:
            return self.reference[:0, :]
        xp = namespace(self.reference)
        return xp.empty((rows, self.d), dtype=dtype, device=device(self.reference))

    def halve(self) -> bool:
        """Make blocks half as long from now on; False if a block has one row already."""
        if self.block(self.d) == 1:
            return False
        self._halvings += 1
        return True


class Rows(Source):
    """Rows in memory, on any device; half precision is converted block by block, never whole.

    Args:
        matrix: the activations, `(n, d)`, of any array library.
        most_rows: see `Source`.
    """

    has_narrow = True

    def __init__(self, matrix: Array, most_rows: int = sys.maxsize) -> None:
        self.most_rows = most_rows
        self.matrix = self.reference = contiguous_rows(matrix)
        self.n, self.d = (int(size) for size in matrix.shape)
        self.capacity = self.n

    def blocks(
        self, columns: int = 0, *, once: bool = False, narrow: bool = False
    ) -> Iterator[tuple[slice, Array]]:
        size = self.block(max(self.d, columns))
        out = self.matrix[:0, :] if narrow else self.conversion_buffer(min(size, self.n))
        if once and not out.shape[0]:
            size = max(size, min(self.block(columns), _ONCE))
        for rows in self._slices(size):
            yield rows, convert(self.matrix[rows, :], out)

    def take(self, index: Array) -> Array:
        """A copy of the rows, or the matrix itself if the index has all its rows in order."""
        xp = namespace(self.matrix)
        ordered = not isinstance(index, np.ndarray)
        if index.shape[0] == self.n and (ordered or (index == np.arange(self.n)).all()):
            return cast(self.matrix, compute_dtype(self.matrix))
        rows = xp.take(self.matrix, beside(index, self.matrix), axis=0)
        return cast(rows, compute_dtype(self.matrix))

    def subset(self, index: np.ndarray) -> Rows:
        return Rows(self.take(index), self.most_rows)


_Method = TypeVar("_Method", bound=Callable[..., Any])


def in_smaller_blocks(method: _Method) -> _Method:
    """Call a method again, with blocks half as long, when the device runs out of memory.

    The method reads `self.rows` in blocks, and changes nothing before it has read them all.
    """

    @wraps(method)
    def retried(self: Any, *args: Any, **kwargs: Any) -> Any:
        while True:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                if not is_out_of_memory(error) or not self.rows.halve():
                    raise

    return retried  # type: ignore[return-value]  # of the same signature
