"""Synthetic rows whose covariance has a given condition number.

Eigenvalues fall geometrically from 1 to 1/condition along random orthogonal axes, so that no
scaling of columns helps; labels come from a random linear model of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.harness.cases import Case, Settings, synthetic_labels

N, D, K = 20_000, 256, 10


def rows(condition: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Make `N` rows of `D` features; float64 keeps the smallest axes until the last rounding."""
    generator = torch.Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))
    scale = condition ** (-0.5 * torch.arange(D, dtype=torch.float64) / (D - 1))
    x = torch.randn(N, D, generator=generator, dtype=torch.float64) * scale @ axes.T
    x = x.float()
    return x, synthetic_labels(x, K, generator)


def cases(settings: Settings) -> Iterator[Case]:
    """Yield conditions of 1e2 to 1e8; the penalty is small, so the spectrum sets the difficulty."""
    for exponent in (2, 4, 6, 8):
        yield Case(f"condition 1e{exponent}", partial(rows, 10.0**exponent), (1e-6,), K)
