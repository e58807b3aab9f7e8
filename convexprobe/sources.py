"""Where rows come from: a matrix of activations held in memory, read in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from convexprobe._array import (
    Array,
    block_rows,
    cast,
    compute_dtype,
    contiguous_rows,
    like,
    namespace,
)


@dataclass(frozen=True)
class Rows:
    """Activations `X`, shape `(n, d)`, in the dtype they came in.

    Blocks and gathered rows are handed out in the compute dtype (float64 for float64, float32 for
    everything narrower), so half-precision activations are never copied whole.

    Attributes:
        matrix: the activations, `(n, d)`, of any array library.
    """

    matrix: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", contiguous_rows(self.matrix))

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.matrix.shape[0])

    @property
    def d(self) -> int:
        """Number of features."""
        return int(self.matrix.shape[1])

    def spans(self, columns: int) -> Iterator[slice]:
        """Row slices, in order; a block of an array with so many columns stays in cache."""
        size = block_rows(columns, self.matrix)
        for start in range(0, self.n, size):
            yield slice(start, min(start + size, self.n))

    def blocks(self, columns: int = 0) -> Iterator[tuple[slice, Array]]:
        """Row slices and their rows, in order; `columns` are the logits beside each row."""
        for rows in self.spans(max(self.d, columns)):
            yield rows, self.block(rows)

    def block(self, rows: slice) -> Array:
        """The rows of a slice."""
        return cast(self.matrix[rows, :], compute_dtype(self.matrix))

    def take(self, index: np.ndarray) -> Array:
        """The rows of a host index, `(s, d)`: gathered, or as they are if they are all."""
        xp = namespace(self.matrix)
        if len(index) == self.n and (index == np.arange(self.n)).all():
            return cast(self.matrix, compute_dtype(self.matrix))
        rows = xp.take(self.matrix, like(index, self.matrix), axis=0)
        return cast(rows, compute_dtype(self.matrix))
