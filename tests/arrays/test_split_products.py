"""Products in narrow parts against float64, and which of them is used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convexprobe.activations.source import Rows
from convexprobe.activations.stored import HostRows
from convexprobe.activations.stream import Stream
from convexprobe.arrays import split_products
from convexprobe.arrays.products import combine_rows, dot_rows
from convexprobe.arrays.split_products import (
    WAYS,
    Way,
    bfloat16_parts,
    fastest,
    float16_parts,
    is_accurate,
    multiply_narrow,
    pays,
    product,
    tf32_parts,
)
from convexprobe.problem.objective import Problem

ALL = [(dtype, way) for dtype, ways in WAYS.items() for way in ways]
NAMES = ["bfloat16", "tf32 of bfloat16", "float16", "tf32 of float16"]
EVERY = pytest.mark.parametrize(("dtype", "way"), ALL, ids=NAMES)


@pytest.fixture(autouse=True)
def on_this_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """This device counts as one with tensor cores, and nothing is known of it."""
    monkeypatch.setattr(split_products, "DEVICES", ("cpu",))
    monkeypatch.setattr(split_products, "_chosen", {})
    monkeypatch.setattr(split_products, "_seconds", lambda work, _: (work(), 1.0)[1])


def factors(dtype: torch.dtype, seed: int, q: int, r: int, c: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    # entries and rows over many orders of magnitude, as weights and residuals are
    a = torch.randn(q, r, generator=g) * 10.0 ** (3 * torch.randn(q, 1, generator=g))
    a *= 10.0 ** (torch.rand(q, r, generator=g) * -6)
    return a, torch.randn(r, c, generator=g).to(dtype)


@EVERY
@given(q=st.integers(1, 20), r=st.integers(1, 300), c=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_product_of_parts_is_as_accurate_as_float32(
    dtype: torch.dtype, way: Way, q: int, r: int, c: int, seed: int
) -> None:
    a, b = factors(dtype, seed, q, r, c)
    found = way(a, b)
    assert found.dtype == torch.float32 and found.shape == (q, c)
    exact, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    # 2^-23 a factor, the sum of float32, and what is small beside its row in float16
    bound = (2.0**-22 + r * 2.0**-25) * size + 2.0**-34 * r * a.abs().amax(1, keepdim=True)
    assert ((found.double() - exact).abs() <= bound + 1e-30).all()
    assert is_accurate(way, a, b)


@pytest.mark.parametrize(
    ("split", "count", "bits"),
    [(bfloat16_parts, 3, 8), (float16_parts, 2, 11), (tf32_parts, 2, 11)],
)
def test_parts_are_narrow_and_add_up_to_the_number(
    split: Callable[[Tensor], Any], count: int, bits: int
) -> None:
    a = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * 1e3
    parts = split(a)
    stacked = parts.stacked.double().reshape(count, 7, 50)
    mantissa, _ = torch.frexp(stacked)
    assert torch.equal((mantissa * 2**bits).round(), mantissa * 2**bits)
    weights = torch.tensor(
        [parts.factor ** (count - 1 - i) for i in range(count)], dtype=torch.float64
    )
    total = (stacked * weights[:, None, None]).sum(0)
    total = total if parts.scale is None else total * parts.scale.double()
    least = 0.0 if count == 3 else 2.0**-22
    assert ((total - a.double()).abs() <= least * a.abs()).all()


@EVERY
def test_numbers_without_a_product_stay_without_one(dtype: torch.dtype, way: Way) -> None:
    a, b = factors(dtype, 0, 4, 6, 3)
    a[0, 0], a[1, 1], a[2, :] = torch.inf, torch.nan, 0.0
    found = way(a, b)
    assert not found[:2].isfinite().any() and not found[2].any() and found[3].isfinite().all()


@pytest.mark.parametrize("dtype", WAYS)
def test_both_products_of_a_block_take_narrow_rows(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1500, 30, generator=g).to(dtype)
    w, r = torch.randn(5, 30, generator=g), torch.randn(5, 1500, generator=g)
    torch.testing.assert_close(dot_rows(w, x), w @ x.float().T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(combine_rows(r, x), r @ x.float(), rtol=1e-5, atol=1e-4)
    assert len(split_products._chosen) == 2


def choose(monkeypatch: pytest.MonkeyPatch, *ways: Way, seconds: list[float]) -> Way | None:
    monkeypatch.setitem(WAYS, torch.bfloat16, ways)
    times = iter(seconds)
    monkeypatch.setattr(split_products, "_seconds", lambda *_: next(times))
    return fastest(*factors(torch.bfloat16, 0, 4, 50, 9))


def test_the_fastest_accurate_way_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    good, other = (Way(bfloat16_parts, multiply_narrow) for _ in range(2))
    rough = Way(lambda a: split_products.Parts(a.bfloat16()), multiply_narrow)

    def broken(a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError("out_dtype")

    missing = Way(bfloat16_parts, broken)
    assert choose(monkeypatch, good, other, seconds=[3.0, 2.0, 1.0]) is other
    assert choose(monkeypatch, good, other, seconds=[1.0, 2.0, 3.0]) is None
    assert choose(monkeypatch, rough, good, seconds=[3.0, 1.0]) is good  # rough is not timed
    assert choose(monkeypatch, rough, missing, seconds=[3.0]) is None


def test_a_full_device_is_no_fault_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(a: Tensor, b: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("full")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        choose(monkeypatch, Way(bfloat16_parts, full), seconds=[1.0])


def test_a_shape_is_judged_once_and_not_on_a_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    monkeypatch.setattr(split_products, "fastest", lambda a, b: judged.append(a.shape))
    x = torch.randn(2000, 8).bfloat16()
    a = torch.randn(3, 8)
    assert pays(x, 3)
    for rows in (10, 1023, 1024, 2000, 5):
        torch.testing.assert_close(product(a, x[:rows].T), a @ x[:rows].float().T)
    assert len(judged) == 1
    assert not pays(x, 3) and pays(x, 4)  # refused: rows are converted once, not in each product
    assert not pays(x.float(), 3) and not pays(x.float().numpy(), 3)
    monkeypatch.setattr(split_products, "DEVICES", ("cuda",))
    assert not pays(x, 4)


SETTINGS = """
import torch
from convexprobe.arrays.split_products import tf32_allowed

def settings():
    matmul = torch.backends.cuda.matmul
    new = getattr(matmul, "fp32_precision", None)
    return torch.get_float32_matmul_precision(), matmul.allow_tf32, new

torch.manual_seed(0)
for precision in (None, "high", "medium", "highest"):
    if precision is not None:
        torch.set_float32_matmul_precision(precision)
    before = settings()
    with tf32_allowed():
        assert torch.backends.cuda.matmul.allow_tf32
        assert precision == "medium" or torch.get_float32_matmul_precision() == "high"
    assert settings() == before, (before, settings())
    try:
        with tf32_allowed():
            raise KeyError
    except KeyError:
        assert settings() == before
"""


def test_no_setting_of_torch_is_left_changed() -> None:
    subprocess.run([sys.executable, "-c", SETTINGS], check=True)


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dtype", WAYS)
def test_an_evaluation_with_narrow_blocks_is_that_of_float32(
    dtype: torch.dtype, streamed: bool, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = WAYS[dtype][0]
    monkeypatch.setattr(split_products, "fastest", lambda a, b: chosen)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3000, 12, generator=g).to(dtype), torch.arange(3000) % k
    rows = Stream(HostRows(x), "cpu", 1e9) if streamed else Rows(x)
    narrow, wide = (Problem(r, y, [1e-3, 0.1], classes=k) for r in (rows, Rows(x.float())))
    assert narrow.multiplies_narrow and not wide.multiplies_narrow
    w = torch.randn(2, narrow.p, generator=g, dtype=torch.float64)
    found, expected = narrow.evaluate(w, keep=True), wide.evaluate(w, keep=True)
    assert {turned for *_, turned in split_products._chosen} == {False, True}
    assert found.logits.dtype == torch.float32
    for name in ("value", "gradient", "entropy", "uncertainty", "logits"):
        a, b = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=name)
    assert (found.rounding < 1e-5).all()
    change = narrow.logit_change(w)
    torch.testing.assert_close(change, wide.logit_change(w), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(narrow.errors(w), wide.errors(w))
