"""Rows that do not fit where they are multiplied: a thread reads ahead, block by block."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from convexprobe.activations.source import Source
from convexprobe.activations.stored import CHUNK, HostRows, Read, StoredRows
from convexprobe.arrays.backend import Array, cast, compute_dtype, convert, on_cpu, to_numpy

AHEAD = 4
"""Chunks that are read before they are needed, so that fast reads make up for slow ones; see
`docs/decisions/reading.md`."""

SAMPLES, HELD = 0.1, 4
"""The share of the limit that a gathered sample may take, at `4 d` bytes a row, and how many arrays
of that size solvers hold: the sample, its batches, and two while a preconditioner is built."""

LEAST = 2500
"""Rows that may be gathered whatever the limit is: the first sample of every solver."""


class Stream(Source):
    """Stored rows, multiplied on a device, with one thread that reads ahead.

    It holds `AHEAD + 1` buffers of `chunk` bytes, or of one block if that is larger, whatever `n`
    is. Blocks are those of `Rows`, so sums have the same bits as with all rows in memory.

    Args:
        store: the stored rows.
        device: where they are multiplied.
        limit: bytes that gathered rows may take, approximately.
        chunk: bytes that are read at a time, approximately.
        most_rows: see `Source`.
    """

    streamed = True
    has_narrow = True

    def __init__(
        self,
        store: StoredRows,
        device: torch.device | str,
        limit: float,
        *,
        chunk: int = CHUNK,
        most_rows: int = sys.maxsize,
    ) -> None:
        self.store, self.device, self.chunk = store, torch.device(device), chunk
        self.most_rows = most_rows
        self.n, self.d = store.shape
        self.reference = torch.empty((0, self.d), dtype=store.dtype, device=self.device)
        self.capacity = capacity(limit, self.d)
        self._spare: list[Tensor] = []

    def blocks(
        self, columns: int = 0, *, once: bool = False, narrow: bool = False
    ) -> Iterator[tuple[slice, Array]]:
        size = self.block(max(self.d, columns))
        step = min(chunk_rows(size, self.store.row_bytes, self.chunk), self.n)
        out = self.reference if narrow else self.conversion_buffer(min(size, self.n))
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
                start, buffer, future = waiting.popleft()
                rows = future.result()
                if not on_cpu(rows):  # their memory belongs to the copy's stream until this one
                    rows.record_stream(torch.accelerator.current_stream(rows.device))
                ask(pool, read)
                for first in range(0, len(rows), size):
                    part = rows[first : first + size]
                    yield slice(start + first, start + first + len(part)), convert(part, out)
                buffers.append(buffer)
        self._spare = buffers

    def take(self, index: Array) -> Array:
        rows = self.store.gather(to_numpy(index)).to(self.device, non_blocking=True)
        return cast(rows, compute_dtype(self.reference))

    def subset(self, index: np.ndarray) -> Source:
        return _Subset(self, index)

    def _buffer(self, rows: int) -> Tensor:
        """A buffer of the last pass if one is large enough, else a new one."""
        while self._spare:
            buffer = self._spare.pop()
            if len(buffer) >= rows or isinstance(self.store, HostRows):
                return buffer
        return self.store.buffer(rows, pinned=self.device.type != "cpu")

    def _fetch(self, read: Read, start: int, stop: int, buffer: Tensor) -> Tensor:
        """Rows on the device, in the reading thread; afterwards the buffer may be overwritten."""
        rows = read(start, stop, buffer)
        if self.device.type == "cpu":
            return rows
        side = torch.Stream(device=self.device)  # a copy here does not wait for the products
        with side:
            rows = rows.to(self.device, non_blocking=True)
        side.synchronize()
        return rows


def chunk_rows(block: int, row_bytes: int, chunk: int = CHUNK) -> int:
    """Rows that are read at a time: whole blocks, about `chunk` bytes."""
    return block * max(1, chunk // (block * row_bytes))


def capacity(limit: float, d: int) -> int:
    """Rows of `d` features that a stream may gather under a limit in bytes."""
    return max(int(SAMPLES * limit / (4 * d)), LEAST)


class _Subset(Source):
    """The rows of a host index of another source, gathered block by block in every pass."""

    def __init__(self, base: Source, index: np.ndarray) -> None:
        self.base, self.index = base, np.asarray(index)
        self.n, self.d, self.reference = len(self.index), base.d, base.reference
        self.capacity, self.most_rows = base.capacity, base.most_rows
        self.streamed = base.streamed

    def blocks(self, columns: int = 0, *, once: bool = False) -> Iterator[tuple[slice, Array]]:
        for span in self.spans(max(self.d, columns)):
            yield span, self.base.take(self.index[span])

    def take(self, index: Array) -> Array:
        return self.base.take(self.index[to_numpy(index)])

    def subset(self, index: np.ndarray) -> Source:
        return _Subset(self.base, self.index[index])
