"""Check the options of a fit before any work is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convexprobe._arguments import check_integer
from convexprobe.arrays.backend import as_array, to_numpy
from convexprobe.arrays.ranks import ALONE, Communicator
from convexprobe.solvers import Solver

STOPPING = ("certificate", "validation")

GRID = tuple(float(10.0**e) for e in range(-6, 1))
"""The penalties of `l2="auto"`, in units of the layer's mean feature variance."""


@dataclass(frozen=True)
class Options:
    """The checked arguments of `fit_probes` that are neither rows, labels nor weights.

    Attributes:
        solver: the algorithm.
        l2: penalties, host `(v,)`; None for `GRID` times the layer's mean feature variance.
        tol, cv, stopping, seed, max_passes, max_seconds, device, memory_limit: as given.
    """

    solver: Solver
    l2: np.ndarray | None
    tol: float
    cv: int | None
    stopping: str
    seed: int
    max_passes: float
    max_seconds: float
    device: str | None
    memory_limit: float | None

    @property
    def stops_early(self) -> bool:
        """Whether a fit ends by its loss on held-out rows."""
        return self.stopping == "validation"

    @property
    def needs_validation(self) -> bool:
        """Whether rows have to be held out, to choose a penalty or to stop by."""
        return self.stops_early or self.l2 is None or len(self.l2) > 1


def check_folds(cv: Any, *, stopping: str = "certificate", validation: bool = False) -> int | None:
    """The number of folds, or None; refused beside validation rows and early stopping."""
    if cv is None:
        return None
    folds = check_integer("cv", cv, least=2)
    if validation:
        raise ValueError("cv: folds are held out of the rows themselves; omit validation=, or cv=")
    if stopping == "validation":
        raise ValueError("cv: the fit to all rows has none to stop by; omit cv=, or stopping=")
    return folds


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


def check_weights(weights: Any, rows: int, communicator: Communicator = ALONE) -> np.ndarray | None:
    """The row weights of all ranks as a host vector `(n,)` float64.

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
