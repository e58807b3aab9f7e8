"""The user's data as a loader that gives the same rows, in the same batches, every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from convexprobe._hashing import fingerprint
from convexprobe.arrays.backend import to_numpy


class RepeatableData:
    """The same rows, in the same batches, every time.

    Args:
        data: inputs `(n, ...)`, or a mapping of them (keyword arguments of the model), with
            `labels`; or, without, a loader that can be iterated over again.
        labels: `(n,)`.
        size: rows of a batch of tensors.
        what: what messages call it.

    Raises:
        TypeError: a loader that can be iterated over only once.
        ValueError: inputs and labels of different lengths.
    """

    def __init__(self, data: Any, labels: Any, size: int, what: str) -> None:
        self.size, self.given = size, data
        self.inputs: dict[str, Tensor] = {}
        self.description: dict[str, Any] = {"loader": type(data).__name__}
        if labels is None:
            if isinstance(data, Iterator) or not isinstance(data, Iterable):
                raise TypeError(
                    f"{what}: without labels, expected a loader that can be iterated over again "
                    f"and again, found {type(data).__name__}"
                )
            return
        self.bare = not isinstance(data, Mapping)
        inputs = {"": data} if self.bare else dict(data)
        self.inputs = {name: torch.as_tensor(value) for name, value in inputs.items()}
        self.labels = torch.as_tensor(labels)
        for name, value in self.inputs.items():
            if len(value) != len(self.labels) or self.labels.ndim != 1:
                raise ValueError(
                    f"{what}: expected one label a row, found {tuple(self.labels.shape)} labels "
                    f"for inputs{f' {name!r}' if name else ''} of shape {tuple(value.shape)}"
                )
        tensors = [to_numpy(value) for value in (*self.inputs.values(), self.labels)]
        self.description = {"rows": len(self.labels), "sha256": fingerprint(*tensors)}

    def loader(self) -> Iterable[Any]:
        """The user's own, or a list of views: both may tell `extract` how much room to make."""
        if not self.inputs:
            return self.given
        found = []
        for start in range(0, len(self.labels), self.size):
            span = slice(start, start + self.size)
            batch = {name: value[span] for name, value in self.inputs.items()}
            found.append((batch[""] if self.bare else batch, self.labels[span]))
        return found
