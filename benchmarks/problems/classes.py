"""Synthetic rows of 2 to 1 000 classes, with labels from a random linear model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.harness.cases import Case, Settings, synthetic_labels

D = 128


def rows(k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make 20 000 rows, or 5 000 of a thousand classes, with correlated features."""
    generator = torch.Generator().manual_seed(k)
    n = 20_000 if k < 1000 else 5_000
    mix = torch.randn(D, D, generator=generator) / D**0.5
    x = torch.randn(n, D, generator=generator) @ mix
    return x, synthetic_labels(x, k, generator)


def cases(settings: Settings) -> Iterator[Case]:
    """Yield a case each of 2, 10, 100 and 1 000 classes."""
    for k in (2, 10, 100, 1000):
        yield Case(f"classes {k}", partial(rows, k), (1e-4,), k)
