"""Widened rows: the same rows in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convexprobe.activations.source import Rows
from convexprobe.activations.widened import Widened
from convexprobe.arrays.backend import to_numpy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_widened_rows_are_the_same_rows_in_float64(dtype: torch.dtype) -> None:
    x = torch.randn(3000, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    base = Rows(x)
    wide = Widened(base)
    assert (wide.n, wide.d, wide.capacity) == (base.n, base.d, base.capacity)
    assert wide.reference.dtype == torch.float64 and base.matrix.dtype == dtype
    exact = x.double()
    spans = []
    for span, block in wide.blocks(10):
        spans.append(span)
        assert block.dtype == torch.float64 and torch.equal(block, exact[span])
    assert spans == list(wide.spans(10)) and spans[-1].stop == 3000
    index = np.array([2999, 0, 17, 17])
    assert torch.equal(wide.take(index), exact[index])
    part = wide.subset(index[:3])
    assert isinstance(part, Widened) and part.n == 3
    assert torch.equal(torch.cat([block for _, block in part.blocks()]), exact[index[:3]])


def test_rows_of_numpy_are_widened_too() -> None:
    x = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    wide = Widened(Rows(x))
    assert wide.take(np.arange(20)).dtype == np.float64
    np.testing.assert_array_equal(to_numpy(wide.take(np.arange(20))), x.astype(np.float64))
