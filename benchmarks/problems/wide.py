"""More features than rows: 500 rows of 5 000 features."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.cases import Case, Settings, synthetic_labels


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of decaying variance, as features of networks have."""
    generator = torch.Generator().manual_seed(0)
    scale = 1.0 / torch.arange(1, 5001) ** 0.5
    x = torch.randn(500, 5000, generator=generator) * scale
    return x, synthetic_labels(x, 10, generator)


def cases(settings: Settings) -> Iterator[Case]:
    """Two penalties."""
    for l2 in (1e-2, 1e-4):
        yield Case(f"wide l2={l2:g}", rows, (l2,), 10)
