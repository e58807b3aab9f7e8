"""Stored rows that are read by range or index: the interface, and rows in host memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

CHUNK = 4 << 20
"""Bytes read at a time: enough for a disk's full speed, and little for any memory."""


Read: TypeAlias = Callable[[int, int, Tensor], Tensor]
"""Reads rows `start` to `stop` into a buffer of at least so many rows, or gives a view of them."""


def empty_rows(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    pinned: bool = False,
) -> Tensor:
    """Uninitialised memory; pinned, where torch can pin any for the accelerator at hand."""
    try:
        return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)
    except (NotImplementedError, RuntimeError):  # a torch or a driver that cannot pin
        if not pinned:
            raise
        return torch.empty(shape, dtype=dtype, device=device)


class StoredRows(ABC):
    """Rows `(n, d)` of one layer that can be read by range and by index.

    Attributes:
        shape: `(n, d)`.
        dtype: of the stored values.
    """

    shape: tuple[int, int]
    dtype: torch.dtype

    @abstractmethod
    def reader(self) -> AbstractContextManager[Read]:
        """A function that reads ranges of rows, for as long as the context is open."""

    @abstractmethod
    def gather(self, index: np.ndarray) -> Tensor:
        """A copy of the rows `(s, d)` of a host index, in its order."""

    def buffer(self, rows: int, *, pinned: bool = False) -> Tensor:
        """Host memory for `read`; if pinned, a device copies from it while the host goes on."""
        return empty_rows((rows, self.shape[1]), self.dtype, pinned=pinned)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.shape[1] * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.row_bytes

    def load(self, device: torch.device | str = "cpu", *, pinned: bool = False) -> Tensor:
        """All rows `(n, d)` in memory, in the stored dtype; needs no second copy of that size."""
        n = self.shape[0]
        out = empty_rows(self.shape, self.dtype, device, pinned=pinned)
        step = max(CHUNK // self.row_bytes, 1)
        buffer = None if out.device.type == "cpu" else self.buffer(min(step, n))
        with self.reader() as read:
            for start in range(0, n, step):
                stop = min(start + step, n)
                rows = read(start, stop, out[start:stop] if buffer is None else buffer)
                if buffer is not None:
                    out[start:stop].copy_(rows, non_blocking=True)  # ends before the call does
        return out


class HostRows(StoredRows):
    """A tensor in host memory whose rows are multiplied elsewhere."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.contiguous()
        self.shape = (tensor.shape[0], tensor.shape[1])
        self.dtype = tensor.dtype

    def reader(self) -> AbstractContextManager[Read]:
        return nullcontext(lambda start, stop, buffer: self.tensor[start:stop])

    def gather(self, index: np.ndarray) -> Tensor:
        return self.tensor[torch.from_numpy(np.ascontiguousarray(index))]

    def buffer(self, rows: int, *, pinned: bool = False) -> Tensor:
        return self.tensor[:0]  # views need none

    def load(self, device: torch.device | str = "cpu", *, pinned: bool = False) -> Tensor:
        if pinned:
            return empty_rows(self.shape, self.dtype, pinned=True).copy_(self.tensor)
        return self.tensor.to(device)
