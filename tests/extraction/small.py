"""A small network and its batches, whose extraction writes small blocks and can be interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import convexprobe as cxp
from convexprobe.extraction.extract import extract_in_blocks

ROOT = Path(__file__).parents[2]
Batches = list[tuple[Tensor, Tensor]]


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


def batches(rows: int = 60, size: int = 7, seed: int = 0) -> Batches:
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 6, generator=g), torch.randint(3, (rows,), generator=g)
    return list(zip(x.split(size), y.split(size), strict=True))


def extract_to(
    out: Path,
    model: nn.Module,
    loader: Any,
    layers: Any = None,
    *,
    block: int = 600,
    **options: Any,
) -> tuple[dict[str, Any], Tensor | None]:
    """`extract(..., out=)` with blocks of so many bytes.

    With 600, a block has two of the batches: 14 rows of 8 + 8 + 5 features.
    """
    return extract_in_blocks(model, loader, layers, out=out, block=block, **options)


def same(directory: Path, expected: dict[str, Tensor], labels: Tensor | None) -> None:
    """The directory holds exactly these layers and labels."""
    stored, stored_labels = cxp.open_activations(directory)
    assert list(stored) == list(expected)
    for name, rows in expected.items():
        assert stored[name].shape == rows.shape and stored[name].dtype == rows.dtype
        assert torch.equal(stored[name].load(), rows), name
    assert (stored_labels is None) == (labels is None)
    if labels is not None and stored_labels is not None:
        assert torch.equal(stored_labels, labels) and stored_labels.dtype == labels.dtype


class Interrupted(nn.Module):
    """A network that is interrupted after so many forward passes."""

    def __init__(self, inner: nn.Sequential, calls: int) -> None:
        super().__init__()
        self.body, self.left = inner, Left(calls)

    @property
    def calls(self) -> int:
        return self.left.calls

    def forward(self, x: Tensor) -> Tensor:
        self.left.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.body(x)


class Left:
    """A number that survives extraction and is no part of the model's identity."""

    def __init__(self, calls: int = 0) -> None:
        self.calls = calls

    def __reduce__(self) -> Any:
        return Left, ()
