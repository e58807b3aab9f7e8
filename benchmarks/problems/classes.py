"""From two to a thousand classes, labels from a random linear model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.cases import Case, Settings, synthetic_labels

D = 128


def rows(k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """20 000 rows, 5 000 with a thousand classes; features of correlated columns."""
    generator = torch.Generator().manual_seed(k)
    n = 20_000 if k < 1000 else 5_000
    mix = torch.randn(D, D, generator=generator) / D**0.5
    x = torch.randn(n, D, generator=generator) @ mix
    return x, synthetic_labels(x, k, generator)


def cases(settings: Settings) -> Iterator[Case]:
    """2, 10, 100 and 1 000 classes."""
    for k in (2, 10, 100, 1000):
        yield Case(f"classes {k}", partial(rows, k), (1e-4,), k)
