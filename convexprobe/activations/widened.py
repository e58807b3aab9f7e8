"""Rows that are kept narrow and multiplied in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from convexprobe.activations.source import Source
from convexprobe.arrays.backend import Array, cast, namespace


class Widened(Source):
    """A source whose blocks and gathered rows are handed out in float64; nothing is copied whole.

    Args:
        base: the rows as they are kept.
    """

    def __init__(self, base: Source) -> None:
        self.base, self.n, self.d, self.capacity = base, base.n, base.d, base.capacity
        self.room, self.streamed = base.room, base.streamed
        self.reference = self._wide(base.reference[:0, :])

    def blocks(self, columns: int = 0, *, once: bool = False) -> Iterator[tuple[slice, Array]]:
        """The base's blocks."""
        return ((span, self._wide(x)) for span, x in self.base.blocks(columns))

    def spans(self, columns: int) -> Iterator[slice]:
        """The base's spans."""
        return self.base.spans(columns)

    def take(self, index: Array) -> Array:
        """The base's rows of an index."""
        return self._wide(self.base.take(index))

    def subset(self, index: np.ndarray) -> Widened:
        """The rows of a host index as a source of their own."""
        return Widened(self.base.subset(index))

    def _wide(self, x: Array) -> Array:
        return cast(x, namespace(x).float64)
