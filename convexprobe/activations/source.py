"""Where rows come from: the interface that every user of rows keeps to, and rows held in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np

from convexprobe.arrays.backend import (
    Array,
    cast,
    compute_dtype,
    contiguous_rows,
    convert,
    device,
    is_out_of_memory,
    like,
    namespace,
)
from convexprobe.arrays.products import block_rows


class Source(ABC):
    """Activations `X`, shape `(n, d)`, read in blocks of rows.

    Blocks and gathered rows are handed out in the compute dtype (float64 for float64, float32 for
    everything narrower) on the device where they are multiplied. A block is good until the next
    one is asked for.

    Attributes:
        reference: an array of the rows' library, stored dtype and device; perhaps without rows.
        n: number of rows.
        d: number of features.
        capacity: rows that may be gathered and held at a time.
    """

    reference: Array
    n: int
    d: int
    capacity: int
    _halvings = 0

    @abstractmethod
    def blocks(self, columns: int = 0) -> Iterator[tuple[slice, Array]]:
        """Row slices and their rows, in order; `columns` are the logits beside each row."""

    @abstractmethod
    def take(self, index: np.ndarray) -> Array:
        """The rows of a host index, `(s, d)`."""

    @abstractmethod
    def subset(self, index: np.ndarray) -> Source:
        """The rows of a host index as a source of their own."""

    def block(self, columns: int) -> int:
        """Rows a block of so many columns has."""
        return max(block_rows(columns, self.reference) >> self._halvings, 1)

    def spans(self, columns: int) -> Iterator[slice]:
        """Row slices, in order; a block of an array with so many columns stays in cache.

        Without rows (a rank may hold none) one empty slice, so that sums have their shape.
        """
        size = self.block(columns)
        for start in range(0, max(self.n, 1), size):
            yield slice(start, min(start + size, self.n))

    def conversion_buffer(self, rows: int) -> Array:
        """For the conversion of so many rows; empty where they need none."""
        xp, dtype = namespace(self.reference), compute_dtype(self.reference)
        rows = 0 if dtype == self.reference.dtype else rows
        return xp.empty((rows, self.d), dtype=dtype, device=device(self.reference))

    def halve(self) -> bool:
        """Half the rows a block from now on; False where a block has one row already."""
        if self.block(self.d) == 1:
            return False
        self._halvings += 1
        return True


class Rows(Source):
    """Rows held in memory, on any device, in the dtype they came in.

    Half-precision activations are never copied whole: blocks are converted as they are read.

    Args:
        matrix: the activations, `(n, d)`, of any array library.
    """

    def __init__(self, matrix: Array) -> None:
        self.matrix = self.reference = contiguous_rows(matrix)
        self.n, self.d = (int(size) for size in matrix.shape)
        self.capacity = self.n

    def blocks(self, columns: int = 0) -> Iterator[tuple[slice, Array]]:
        """Views of the matrix, or its conversions."""
        out = self.conversion_buffer(min(self.block(max(self.d, columns)), self.n))
        for rows in self.spans(max(self.d, columns)):
            yield rows, convert(self.matrix[rows, :], out)

    def take(self, index: np.ndarray) -> Array:
        """Gathered rows, or the matrix as it is if the index has all of it in order."""
        xp = namespace(self.matrix)
        if len(index) == self.n and (index == np.arange(self.n)).all():
            return cast(self.matrix, compute_dtype(self.matrix))
        rows = xp.take(self.matrix, like(index, self.matrix), axis=0)
        return cast(rows, compute_dtype(self.matrix))

    def subset(self, index: np.ndarray) -> Rows:
        """A copy of the rows."""
        return Rows(self.take(index))


class _ReadsRows(Protocol):
    @property
    def rows(self) -> Source: ...


_Reader = TypeVar("_Reader", bound=_ReadsRows)


_P = ParamSpec("_P")


_T = TypeVar("_T")


def in_smaller_blocks(
    method: Callable[Concatenate[_Reader, _P], _T],
) -> Callable[Concatenate[_Reader, _P], _T]:
    """A method that reads `self.rows` in blocks and changes nothing before it has read them all.

    Where the device runs out of memory, it is called again with half the rows a block.
    """

    @wraps(method)
    def retried(self: _Reader, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        while True:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                if not is_out_of_memory(error) or not self.rows.halve():
                    raise

    return retried
