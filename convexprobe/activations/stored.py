"""Where rows are kept before they are multiplied: the interface, and host memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

CHUNK = 4 << 20
"""Bytes read at a time: large enough for a disk's full speed, small beside any memory."""


class Read(Protocol):
    """Reads rows `start` to `stop`: into `buffer`, `(stop - start or more, d)`, or as a view."""

    def __call__(self, start: int, stop: int, buffer: Tensor) -> Tensor: ...


class StoredRows(ABC):
    """Rows `(n, d)` of one layer that can be read by range and by index.

    Attributes:
        shape: `(n, d)`.
        dtype: that of the stored values.
    """

    shape: tuple[int, int]
    dtype: torch.dtype

    @abstractmethod
    def reader(self) -> AbstractContextManager[Read]:
        """A function that reads ranges of rows, for as long as the context is open."""

    @abstractmethod
    def gather(self, index: np.ndarray) -> Tensor:
        """The rows of a host index, `(s, d)`, in its order: a copy."""

    def buffer(self, rows: int, *, pinned: bool = False) -> Tensor:
        """Host memory for `read`; pinned, a device copies from it while the host goes on."""
        return torch.empty((rows, self.shape[1]), dtype=self.dtype, pin_memory=pinned)

    @property
    def row_bytes(self) -> int:
        """Bytes a row."""
        return self.shape[1] * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return self.shape[0] * self.row_bytes

    def load(self, device: torch.device | str = "cpu", *, pinned: bool = False) -> Tensor:
        """All rows in memory, `(n, d)` in the stored dtype; nothing else of that size is made."""
        n, d = self.shape
        out = torch.empty((n, d), dtype=self.dtype, device=device, pin_memory=pinned)
        step = max(CHUNK // self.row_bytes, 1)
        direct = out.device.type == "cpu"
        buffer = out[:0] if direct else self.buffer(min(step, n))
        with self.reader() as read:
            for start in range(0, n, step):
                stop = min(start + step, n)
                rows = read(start, stop, out[start:stop] if direct else buffer)
                if not direct:
                    out[start:stop] = rows
        return out


class HostRows(StoredRows):
    """A tensor in host memory whose rows are multiplied elsewhere."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.contiguous()
        self.shape = (tensor.shape[0], tensor.shape[1])
        self.dtype = tensor.dtype

    def reader(self) -> AbstractContextManager[Read]:
        """One that gives views."""
        return nullcontext(lambda start, stop, buffer: self.tensor[start:stop])

    def gather(self, index: np.ndarray) -> Tensor:
        """A copy."""
        return self.tensor[torch.from_numpy(np.ascontiguousarray(index))]

    def buffer(self, rows: int, *, pinned: bool = False) -> Tensor:
        """None of its own is needed."""
        return self.tensor[:0]

    def load(self, device: torch.device | str = "cpu", *, pinned: bool = False) -> Tensor:
        """The tensor itself where it is there already."""
        out = self.tensor.to(device)
        return out.pin_memory() if pinned else out
