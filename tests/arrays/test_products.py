"""Products that threads share by rows are those of one thread, to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import convexprobe.arrays.products as products
from convexprobe.arrays.products import combine_rows, dot_rows, sum_by_class


@pytest.fixture
def three_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@given(q=st.integers(1, 70), r=st.integers(1, 200), d=st.integers(1, 50), seed=st.integers(0, 99))
def test_products_of_parts_are_the_products(q: int, r: int, d: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(r, d, generator=g)
    for product, a, exact in (
        (dot_rows, torch.randn(q, d, generator=g), lambda a: a.double() @ x.double().T),
        (combine_rows, torch.randn(q, r, generator=g), lambda a: a.double() @ x.double()),
    ):
        found = product(a, x)
        assert found.shape == exact(a).shape and found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact(a), rtol=0, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(q=st.sampled_from([1, 2, 6, 7, 15, 48, 49]), r=st.integers(0, 3000), d=st.integers(1, 400))
def test_small_products_add_up_to_the_large_one_in_either_library(q: int, r: int, d: int) -> None:
    rng = np.random.default_rng(q + r + d)
    x, a, b = (rng.standard_normal(s).astype(np.float32) for s in ((r, d), (q, d), (q, r)))
    for array in (x, a, b):
        array.flags.writeable = False  # as those of a file are
    for library in (np.asarray, torch.from_dlpack):
        dots, sums = dot_rows(library(a), library(x)), combine_rows(library(b), library(x))
        exact = a.astype(np.float64), b.astype(np.float64), x.astype(np.float64)
        np.testing.assert_allclose(dots, exact[0] @ exact[2].T, rtol=0, atol=1e-3)
        np.testing.assert_allclose(sums, exact[1] @ exact[2], rtol=0, atol=1e-3)


@pytest.mark.usefixtures("three_threads")
def test_few_rows_are_left_to_one_product() -> None:
    x, a = torch.ones(500, 4), torch.ones(8, 4)
    assert products._parts(a, x) == 3
    assert products._parts(a, x[:70]) == 2  # 32 rows a thread at least
    assert products._parts(a, x[:20]) == products._parts(a, x[:0]) == 1
    assert products._parts(torch.ones(65, 4), x) == 1  # MKL's own threads do as well
    assert products._parts(a.double(), x.double()) == products._parts(a.numpy(), x.numpy()) == 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("q", [1, 10, 60, 100])
def test_products_are_written_to_a_part_of_an_array(q: int, threads: int) -> None:
    g = torch.Generator().manual_seed(0)
    a, x = torch.randn(q, 300, generator=g), torch.randn(101, 300, generator=g)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for library in (torch.asarray, np.asarray):
            left, right = library(a), library(x)
            every = library(torch.zeros(q, 400))
            part = every[:, 200:301]
            assert dot_rows(left, right, part) is part
            assert (part == dot_rows(left, right)).all()
            assert not every[:, :200].any() and not every[:, 301:].any()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("r", [0, 1, 700])
def test_sums_by_class_are_as_accurate_as_a_product(r: int, dtype: type) -> None:
    rng = np.random.default_rng(r)
    x = (100 + rng.standard_normal((r, 9))).astype(dtype)
    labels = np.where(rng.random(r) < 0.9, 3, rng.integers(0, 40, r))  # most rows are of one class
    for array in (x, labels):
        array.flags.writeable = False  # as those of a file are
    exact = (labels == np.arange(40)[:, None]).astype(np.float64) @ x.astype(np.float64)
    for library in (np.asarray, torch.from_dlpack):
        found = np.asarray(sum_by_class(library(x), library(labels), 40))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, exact, rtol=1e-6 if dtype == np.float32 else 1e-14)
