"""Rows where the library has to fetch them: in a directory, and on a device without room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convexprobe.activations.manifest import LABELS, Block, Layer, Manifest, dtype_name


class Exhausted:
    """Stands for a device on which arrays of more than `most` rows do not fit."""

    def __init__(self, rows: Any, most: int) -> None:
        self.rows, self.most, self.refused = rows, most, 0

    def __call__(self, columns: int = 0, *, once: bool = False) -> Iterator[tuple[slice, Any]]:
        for span, x in self.rows(columns, once=once):
            if len(x) > self.most:
                self.refused += 1
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            yield span, x


def write_activations(
    directory: Path, layers: dict[str, Tensor], labels: Tensor, rows: int = 97
) -> None:
    """A directory as extract writes it, in blocks of so many rows."""
    directory.mkdir(exist_ok=True)
    listed = [Layer.of((name,), x) for name, x in layers.items()]
    blocks = []
    for start in range(0, len(labels), rows):
        tensors = {
            layer.key: x[start : start + rows].clone()
            for layer, x in zip(listed, layers.values(), strict=True)
        }
        tensors[LABELS] = labels[start : start + rows].clone()
        blocks.append(Block.write(directory, len(blocks), tensors, 1, 0))
    columns = {LABELS: dtype_name(labels)}
    Manifest("", {}, tuple(listed), columns, tuple(blocks), True).write(directory)
