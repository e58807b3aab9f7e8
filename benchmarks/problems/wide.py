"""Wide rows, more features than rows: 500 rows of 5 000 features."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.harness.cases import Case, Settings, synthetic_labels


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Make rows whose features' variances decay, as those of networks do."""
    generator = torch.Generator().manual_seed(0)
    scale = 1.0 / torch.arange(1, 5001) ** 0.5
    x = torch.randn(500, 5000, generator=generator) * scale
    return x, synthetic_labels(x, 10, generator)


def cases(settings: Settings) -> Iterator[Case]:
    """Yield a case for each of two penalties."""
    for l2 in (1e-2, 1e-4):
        yield Case(f"wide l2={l2:g}", rows, (l2,), 10)
