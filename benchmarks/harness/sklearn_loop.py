"""What replaces our probes in users' hands: a loop over scikit-learn's LogisticRegression."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression


@dataclass(frozen=True)
class Fit:
    """One fit of a loop: labels, scikit-learn's C, and whether coefficients reach the target."""

    y: np.ndarray
    C: float
    reached: Callable[[np.ndarray], bool]


def coefficients(model: LogisticRegression) -> np.ndarray:
    """Return a model's coefficients `(k, d + 1)`, or `(1, d + 1)` for two classes."""
    return np.column_stack([model.coef_, model.intercept_])


def timed_fit(
    x: np.ndarray, task: Fit, solver: str, tol: float, start: LogisticRegression | None
) -> tuple[float, LogisticRegression]:
    """Fit from `start`, or from zero; return the seconds and the model."""
    model = LogisticRegression(C=task.C, solver=solver, tol=tol, max_iter=20_000, warm_start=True)
    if start is not None:
        model.coef_, model.intercept_ = start.coef_.copy(), start.intercept_.copy()
        model.classes_ = start.classes_
    began = time.perf_counter()
    model.fit(x, task.y)
    return time.perf_counter() - began, model


def loosest_fit(
    x: np.ndarray,
    task: Fit,
    solver: str,
    start: LogisticRegression | None,
    *,
    tol: float = 0.1,
    divide: float = 2.0,
    least: float = 1e-12,
    most: float = np.inf,
) -> tuple[float, float, LogisticRegression | None]:
    """Divide `tol` until a fit reaches the target; return its seconds, `tol` and model.

    Only that fit's seconds count. They are infinite, and the model is None, if `tol` falls to
    `least` or all fits together take `most` seconds before one reaches the target.
    """
    spent = 0.0
    while tol > least and spent < most:
        seconds, model = timed_fit(x, task, solver, tol, start)
        if task.reached(coefficients(model)):
            return seconds, tol, model
        spent += seconds
        tol /= divide
    return np.inf, tol, None
