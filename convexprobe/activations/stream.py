"""Rows that do not fit where they are multiplied: read in blocks while others are multiplied."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from convexprobe.activations.source import Source
from convexprobe.activations.stored import CHUNK, HostRows, Read, StoredRows
from convexprobe.arrays.backend import Array, cast, compute_dtype, convert

AHEAD = 4
"""Chunks that are read before they are needed, so that slow reads are made up for by fast ones.

Passes over 2 GB relative to a sequential read of the files, and, cached, to the pass in memory, on
two cores, medians of nine in one run: 0.67 and 1.45 with 2 chunks of 8 MiB, 0.82 and 1.33 with 4 of
4 MiB. Runs differ by a third; neither more chunks nor two reading threads were better in any.
"""

SAMPLES = 0.1
"""Of the limit, what a gathered sample may take, `4 d` bytes a row: solvers hold up to four arrays
of that size (the sample, its batches, and two while a preconditioner is built)."""

LEAST = 2500
"""Rows that may be gathered whatever the limit: the first sample of every solver."""


class Stream(Source):
    """Rows of a store, multiplied on a device, with one thread that reads ahead.

    Memory: `AHEAD + 1` buffers of `CHUNK` bytes or a block, whatever `n` is. Blocks are those of
    `Rows`, so that the sums are the same to the last bit as with all rows in memory.

    Args:
        store: where the rows are.
        device: where they are multiplied.
        limit: bytes that gathered rows may take, about.
    """

    def __init__(self, store: StoredRows, device: torch.device | str, limit: float) -> None:
        self.store, self.device = store, torch.device(device)
        self.n, self.d = store.shape
        self.reference = torch.empty((0, self.d), dtype=store.dtype, device=self.device)
        self.capacity = capacity(limit, self.d)
        self._spare: list[Tensor] = []

    def blocks(self, columns: int = 0) -> Iterator[tuple[slice, Array]]:
        """Views of a buffer, or their conversions."""
        size = self.block(max(self.d, columns))
        step = min(chunk_rows(size, self.store.row_bytes), self.n)
        out = self.conversion_buffer(min(size, self.n))
        starts = iter(range(0, self.n, step))
        buffers = [self._buffer(step) for _ in range(AHEAD + 1)]
        waiting: deque[tuple[int, Tensor, Future[Tensor]]] = deque()

        def ask(pool: ThreadPoolExecutor, read: Read) -> None:
            if (start := next(starts, None)) is not None:
                buffer, stop = buffers.pop(), min(start + step, self.n)
                rows = pool.submit(self._fetch, read, start, stop, buffer)
                waiting.append((start, buffer, rows))

        with self.store.reader() as read, ThreadPoolExecutor(1, "convexprobe-read") as pool:
            for _ in range(AHEAD):
                ask(pool, read)
            while waiting:
                start, buffer, found = waiting.popleft()
                rows = self._arrived(found.result())
                ask(pool, read)
                for first in range(0, len(rows), size):
                    part = rows[first : first + size]
                    yield slice(start + first, start + first + len(part)), convert(part, out)
                buffers.append(buffer)
        self._spare = buffers

    def take(self, index: np.ndarray) -> Array:
        """Gathered in the store's own order, then moved."""
        rows = self.store.gather(np.asarray(index)).to(self.device)
        return cast(rows, compute_dtype(self.reference))

    def subset(self, index: np.ndarray) -> Source:
        """Read when asked for, block by block."""
        return _Subset(self, index)

    def _buffer(self, rows: int) -> Tensor:
        """One of the last pass, if it is large enough."""
        while self._spare:
            buffer = self._spare.pop()
            if len(buffer) >= rows or isinstance(self.store, HostRows):
                return buffer
        return self.store.buffer(rows, pinned=self.device.type == "cuda")

    def _fetch(self, read: Read, start: int, stop: int, buffer: Tensor) -> Tensor:
        """In the reading thread: rows on the device, the buffer free to be filled again."""
        rows = read(start, stop, buffer)
        if self.device.type != "cuda":
            return rows.to(self.device)
        side = torch.cuda.Stream(self.device)  # a copy here does not wait for the products
        with torch.cuda.stream(side):
            rows = rows.to(self.device, non_blocking=True)
        side.synchronize()
        return rows

    def _arrived(self, rows: Tensor) -> Tensor:
        if rows.device.type == "cuda":  # its memory belongs to the copy's stream until this one
            rows.record_stream(torch.cuda.current_stream(rows.device))
        return rows


def chunk_rows(block: int, row_bytes: int) -> int:
    """Rows read at a time: whole blocks, about `CHUNK` bytes."""
    return block * max(1, CHUNK // (block * row_bytes))


def capacity(limit: float, d: int) -> int:
    """Rows of `d` features that a stream may gather under the limit."""
    return max(int(SAMPLES * limit / (4 * d)), LEAST)


class _Subset(Source):
    """Rows of a host index of another source, gathered block by block."""

    def __init__(self, base: Source, index: np.ndarray) -> None:
        self.base, self.index = base, np.asarray(index)
        self.n, self.d, self.reference = len(self.index), base.d, base.reference
        self.capacity = base.capacity

    def blocks(self, columns: int = 0) -> Iterator[tuple[slice, Array]]:
        """Gathered anew in every pass."""
        for span in self.spans(max(self.d, columns)):
            yield span, self.base.take(self.index[span])

    def take(self, index: np.ndarray) -> Array:
        """The rows of an index into the subset."""
        return self.base.take(self.index[index])

    def subset(self, index: np.ndarray) -> Source:
        """A subset of the subset."""
        return _Subset(self.base, self.index[index])
