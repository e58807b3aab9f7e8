"""Check the options of a fit."""

from __future__ import annotations

from typing import Any

import numpy as np

from convexprobe.arrays.backend import (
    as_array,
    to_numpy,
)
from convexprobe.arrays.ranks import ALONE, Communicator


def check_folds(cv: Any, validation: Any, stopping: Any) -> None:
    """A number of folds, without validation rows or early stopping beside them."""
    if stopping not in ("certificate", "validation"):
        raise ValueError(f'stopping: expected "certificate" or "validation", found {stopping!r}')
    if cv is None:
        return
    if isinstance(cv, bool) or not isinstance(cv, int) or cv < 2:
        raise ValueError(f"cv: expected None or at least 2 folds, found {cv!r}")
    if validation is not None:
        raise ValueError("cv: folds are held out of the rows themselves; omit validation=, or cv=")
    if stopping == "validation":
        raise ValueError("cv: the fit to all rows has none to stop by; omit cv=, or stopping=")


def check_weights(weights: Any, rows: int, communicator: Communicator = ALONE) -> np.ndarray | None:
    """Row weights of all ranks as a host vector `(n,)` float64.

    Raises:
        ValueError: wrong length, a negative or non-finite weight, or no positive one.
    """
    if weights is None:
        return None
    with communicator.raise_together():
        values = np.asarray(to_numpy(as_array(weights)), dtype=np.float64)
        if values.shape != (rows,):
            raise ValueError(f"sample_weight: expected shape ({rows},), found {values.shape}")
        bad = ~(np.isfinite(values) & (values >= 0))
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"sample_weight: expected finite weights >= 0, found {values[row]} in row {row}"
            )
    values = communicator.all_gather(values)
    if not (values > 0).any():
        raise ValueError("sample_weight: expected a positive weight, found none")
    return values


def check_l2(l2: Any) -> np.ndarray | None:
    """Penalties as a host vector, or None for "auto".

    Raises:
        ValueError: another string, an empty list, a negative or non-finite penalty.
    """
    if isinstance(l2, str):
        if l2 != "auto":
            raise ValueError(f'l2: expected a number, a list of numbers or "auto", found {l2!r}')
        return None
    values = np.atleast_1d(np.asarray(l2, dtype=np.float64))
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"l2: expected a number or a non-empty list, found shape {values.shape}")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"l2: expected finite penalties of at least 0, found {values.tolist()}")
    return values


GRID = tuple(float(10.0**e) for e in range(-6, 1))
"""The grid of `l2="auto"`, in units of the layer's mean feature variance."""


def check_tol(tol: Any) -> None:
    """A tolerance above 0."""
    if not tol > 0:
        raise ValueError(f"tol: expected a positive number, found {tol}")
