"""The elementwise functions of two classes, against the general ones in float64."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from convexprobe.arrays.backend import to_numpy
from convexprobe.problem import softmax
from convexprobe.problem.softmax import best_row_terms, ray_terms, row_loss, row_terms

MARGINS = [0.0, 1e-30, 1e-3, 1.0, 30.0, 1e3, 1e30]  # the last is that of a class without rows


def logits() -> tuple[np.ndarray, np.ndarray]:
    """Logits `(2, 2, r)` with every margin in both directions, and every label for each."""
    margins = np.array([*MARGINS, *(-margin for margin in MARGINS)])
    second = np.repeat(margins, 2)[None, :] * np.array([[1.0], [0.5]])
    return np.stack([0.25 * second, 1.25 * second], axis=1), np.tile([0, 1], 14)[None, :]


@pytest.mark.parametrize("weighted", [False, True])
def test_two_classes_are_what_the_general_form_says(weighted: bool, library: ModuleType) -> None:
    z, labels = logits()
    weights = np.linspace(0.0, 3.0, 28)[None, :] if weighted else None
    expected = row_terms(z, labels, weights)
    given = [None if a is None else library.asarray(a) for a in (z, labels, weights)]
    found = best_row_terms(*given)
    for name, value, general in zip(found._fields, found, expected, strict=True):
        if name == "residual":  # the second class's alone
            general = general[:, 1:, :]
        np.testing.assert_allclose(to_numpy(value), general, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(to_numpy(row_loss(*given[:2])), row_loss(z, labels))
    np.testing.assert_array_equal(to_numpy(given[0]), z)


def test_a_ray_of_two_classes_is_what_the_general_form_says(library: ModuleType) -> None:
    z, labels = logits()
    z, dz, t = (
        np.clip(z, -1e3, 1e3),
        np.sin(np.arange(z.size)).reshape(z.shape),
        np.array([0.5, -2]),
    )
    found = ray_terms(*(library.asarray(a) for a in (z, dz, t, labels)))
    for value, general in zip(found, softmax._ray_terms(z, dz, t, labels), strict=True):
        np.testing.assert_allclose(to_numpy(value), general, rtol=1e-10, atol=1e-12)


def test_the_residual_of_a_certain_row_is_rounded_at_its_own_size() -> None:
    z = np.array([[[0.0], [30.0]]], dtype=np.float32)
    (residual,) = best_row_terms(z, np.array([[1]])).residual.ravel()
    assert residual == pytest.approx(-np.exp(-30.0), rel=1e-6)  # 1 - 1 would be 0
