"""The user's data as a loader that gives the same batches every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from convexprobe._hashing import fingerprint
from convexprobe.arrays.backend import to_numpy


class RepeatableData:
    """Tensors that are cut into batches, or a loader that is iterated over again and again.

    Args:
        data: with `labels`, inputs `(n, ...)` or a mapping of such inputs to the model's keyword
            arguments; without, a loader of batches as `extract` takes them.
        labels: `(n,)`.
        size: rows a batch, where `data` are tensors.
        what: what error messages call the data.

    Raises:
        TypeError: the loader can be iterated over only once.
        ValueError: inputs and labels have different lengths.
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
        """The user's loader, or a list of batches that are views of the tensors."""
        if not self.inputs:
            return self.given
        batches = []
        for start in range(0, len(self.labels), self.size):
            span = slice(start, start + self.size)
            batch = {name: value[span] for name, value in self.inputs.items()}
            batches.append((batch[""] if self.bare else batch, self.labels[span]))
        return batches
