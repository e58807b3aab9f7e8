"""scikit-learn's digits: 1 797 rows of 64 pixels, scaled to [0, 1]."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits

from benchmarks.harness.cases import Case, Settings


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Load all rows."""
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y, dtype=torch.int64)


def cases(settings: Settings) -> Iterator[Case]:
    """Yield a case for each of two penalties."""
    for l2 in (1e-3, 1e-5):
        yield Case(f"digits l2={l2:g}", rows, (l2,), 10)
