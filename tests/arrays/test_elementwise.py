"""Elementwise work on logits: the same as the one-hot formulas, on every library."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from convexprobe.arrays.backend import to_numpy
from convexprobe.arrays.elementwise import (
    LARGE,
    exponential,
    exponential_,
    minus_one_hot_,
    minus_scaled,
    one_hot,
    pick,
    sum_of_products,
)
from convexprobe.problem.softmax import curvature_product, ray_terms, row_loss, row_terms, softmax_

SHARED = pytest.mark.parametrize("shared", [False, True], ids=["labels of each", "shared labels"])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def case(shared: bool, dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits `(3, 4, 7)`, labels `(1 or 3, 7)`, and these as a float one-hot `(3, 4, 7)`."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((3, 4, 7)).astype(dtype)
    labels = rng.integers(4, size=(1 if shared else 3, 7))
    hot = np.eye(4, dtype=dtype)[np.broadcast_to(labels, (3, 7))].transpose(0, 2, 1)
    return z, labels, hot


@SHARED
@DTYPES
def test_the_picked_logit_is_the_one_of_the_label(
    shared: bool, dtype: type, library: ModuleType
) -> None:
    z, labels, hot = case(shared, dtype)
    picked = to_numpy(pick(library.asarray(z), library.asarray(labels)))
    assert picked.dtype == dtype
    np.testing.assert_array_equal(picked, (z * hot).sum(axis=1))


@SHARED
@DTYPES
def test_one_is_taken_from_the_probability_of_the_label(
    shared: bool, dtype: type, library: ModuleType
) -> None:
    z, labels, hot = case(shared, dtype)
    less = to_numpy(minus_one_hot_(library.asarray(z.copy()), library.asarray(labels)))
    assert less.dtype == dtype
    np.testing.assert_array_equal(less, z - hot)


@SHARED
def test_one_hot_marks_the_label_alone(shared: bool, library: ModuleType) -> None:
    _, labels, hot = case(shared, np.float64)
    marks = to_numpy(one_hot(library.asarray(labels), 4))
    np.testing.assert_array_equal(np.broadcast_to(marks, hot.shape), hot.astype(bool))


@DTYPES
def test_an_exponential_is_exactly_0_up_to_the_least_logit(
    dtype: type, library: ModuleType
) -> None:
    z = np.array([[[-np.inf, -1e30, -41.5, -41.0, -40.9, -1.0, 0.0]]], dtype=dtype)
    out = to_numpy(exponential(library.asarray(z), -41.0))
    assert out.dtype == dtype
    assert not out[0, 0, :4].any() and out[0, 0, 4] > 0
    np.testing.assert_allclose(out[0, 0, 4:], np.exp(z[0, 0, 4:]), rtol=1e-6)


@DTYPES
def test_an_exponential_in_place_is_the_same(dtype: type, library: ModuleType) -> None:
    z = np.random.default_rng(0).normal(-20.0, 20.0, size=(2, 5, 6)).astype(dtype)
    expected = to_numpy(exponential(library.asarray(z.copy()), -41.0))
    found = to_numpy(exponential_(library.asarray(z.copy()), -41.0))
    np.testing.assert_array_equal(found, expected)


@DTYPES
def test_sums_and_differences_of_products_are_those_of_numpy(
    dtype: type, library: ModuleType
) -> None:
    z, dz = np.random.default_rng(0).standard_normal((2, 3, 4, 7)).astype(dtype)
    t = np.array([0.5, -2.0, 0.0], dtype=dtype)
    moved = to_numpy(minus_scaled(*(library.asarray(a.copy()) for a in (z, t, dz))))
    assert moved.dtype == dtype
    np.testing.assert_allclose(moved, z - t[:, None, None] * dz, rtol=1e-5, atol=1e-6)
    arrays = [library.asarray(a.copy()) for a in (z, dz, z)]
    total = to_numpy(sum_of_products(*arrays))
    assert total.dtype == dtype
    np.testing.assert_allclose(total, (z * dz).sum(axis=1), rtol=1e-5, atol=1e-6)


@SHARED
@DTYPES
def test_many_logits_in_numpy_are_what_few_are(shared: bool, dtype: type) -> None:
    """Beyond `LARGE` numbers torch does the work; a row says the same among few and among many."""
    rng = np.random.default_rng(0)
    r = LARGE // 12 + 1
    z, dz = (10.0 * rng.standard_normal((2, 3, 4, r))).astype(dtype)
    labels = rng.integers(4, size=(1 if shared else 3, r))
    labels.flags.writeable = False  # of which torch warns
    t, few, tolerance = np.array([1.0, 0.1, -2.0]), slice(0, 50), 1e3 * np.finfo(dtype).eps
    z_before, dz_before = z.copy(), dz.copy()
    for function, arrays in (
        (row_terms, (z, labels)),
        (row_loss, (z, labels)),
        (ray_terms, (z, dz, t, labels)),
        (curvature_product, (softmax_(z.copy()), dz)),
        (lambda a: softmax_(a.copy()), (z,)),
    ):
        part = [a if a is t else np.ascontiguousarray(a[..., few]) for a in arrays]
        many, alone = function(*arrays), function(*part)
        if isinstance(many, np.ndarray):
            many, alone = (many,), (alone,)
        for a, b in zip(many, alone, strict=True):
            assert isinstance(a, np.ndarray) and a.dtype == dtype
            np.testing.assert_allclose(a[..., few], b, rtol=tolerance, atol=100.0 * tolerance)
    np.testing.assert_array_equal(z, z_before)
    np.testing.assert_array_equal(dz, dz_before)
