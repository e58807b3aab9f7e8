"""One batch of a loader: the arguments of a forward pass and the labels, checked."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from convexprobe._hashing import raw_bytes
from convexprobe.extraction.layer_names import described


@dataclass(frozen=True)
class Batch:
    """The arguments of one forward pass over `rows` examples, `start` rows into the data."""

    index: int
    start: int
    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]
    rows: int
    labels: Tensor | None  # (rows,)

    @classmethod
    def read(cls, found: Any, index: int, start: int = 0) -> Batch:
        """From a tensor, an `(inputs, labels)` pair or a mapping.

        Raises:
            TypeError, ValueError: it is none of those, or the labels do not fit.
        """
        inputs, labels = found, None
        if isinstance(found, tuple | list) and len(found) in (1, 2):
            inputs, labels = found if len(found) == 2 else (found[0], None)
        args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})
        if labels is None:
            labels = kwargs.pop("labels" if "labels" in kwargs else "label", None)
        first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if first is None or first.ndim == 0:
            raise TypeError(
                f"batch {index}: expected a tensor with rows, a pair (inputs, labels) or a mapping "
                f"with such tensors, found {described(found)}"
            )
        if labels is not None and not isinstance(labels, Tensor):
            try:
                labels = torch.tensor(labels, device="cpu")
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(
                    f"batch {index}: labels must be numbers, found {described(labels)}"
                ) from error
        if labels is not None and labels.shape != (len(first),):
            raise ValueError(
                f"batch {index}: expected labels of shape ({len(first)},), one per row, "
                f"found {tuple(labels.shape)}"
            )
        return cls(index, start, args, kwargs, len(first), labels)

    def checksum(self, crc: int) -> int:
        """CRC-32 of its tensors, going on from `crc`."""
        for value in (*self.args, *self.kwargs.values(), self.labels):
            if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested:
                crc = zlib.crc32(raw_bytes(value.detach().cpu().contiguous()), crc)
        return crc


def expected_rows(loader: Iterable[Any]) -> int:
    """Rows that the loader will give, 0 if it does not tell. Wrong costs memory, nothing else."""
    if isinstance(loader, list | tuple):
        return sum(Batch.read(found, index).rows for index, found in enumerate(loader))
    # without a batch size, a batch sampler of the user's own decides
    if not isinstance(loader, DataLoader) or not loader.batch_size:
        return 0
    rows = len(loader.sampler) if isinstance(loader.sampler, Sized) else 0
    return rows - rows % loader.batch_size if loader.drop_last else rows
