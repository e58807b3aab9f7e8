"""Made images of ten classes, and the parameters of a network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def synthetic(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright bar whose height tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, size=n)
    images = rng.integers(0, 100, size=(n, 28, 28), dtype=np.uint8)
    images[np.arange(n), 4 + 2 * labels] = 255
    return images, labels


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
