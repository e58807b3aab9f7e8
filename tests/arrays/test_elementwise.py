"""Elementwise work on logits: the same as the one-hot formulas, on every library."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from convexprobe.arrays.backend import to_numpy
from convexprobe.arrays.elementwise import exponential, minus_one_hot_, one_hot, pick

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
