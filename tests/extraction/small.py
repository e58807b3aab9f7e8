"""A small network and its batches, whose extraction can be interrupted."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import convexprobe as cxp

RepeatableData = list[tuple[Tensor, Tensor]]


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


def batches(rows: int = 60, size: int = 7, seed: int = 0) -> RepeatableData:
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 6, generator=g), torch.randint(3, (rows,), generator=g)
    return list(zip(x.split(size), y.split(size), strict=True))


def same(directory: Path, expected: dict[str, Tensor], labels: Tensor | None) -> None:
    found, found_labels = cxp.open_activations(directory)
    assert list(found) == list(expected)
    for name, rows in expected.items():
        assert found[name].shape == rows.shape and found[name].dtype == rows.dtype
        assert torch.equal(found[name].load(), rows), name
    assert (found_labels is None) == (labels is None)
    if labels is not None and found_labels is not None:
        assert torch.equal(found_labels, labels) and found_labels.dtype == labels.dtype


class Interrupted(nn.Module):
    """A network that fails in its `calls`-th forward pass; parameters and names are the same."""

    def __init__(self, inner: nn.Sequential, calls: int) -> None:
        super().__init__()
        # a list: attributes of the model are put back after extraction
        self.body, self.left = inner, [calls]

    @property
    def calls(self) -> int:
        return self.left[0]

    def forward(self, x: Tensor) -> Tensor:
        self.left[0] -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.body(x)
