"""Check the options of a fit before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from convexprobe._arguments import check_integer, check_real, shown
from convexprobe.arrays.ranks import Communicator
from convexprobe.probes.columns import host_vector
from convexprobe.solvers import Solver

WEIGHTS = (1e-30, 1e30)
"""The range of positive row weights: float32 can hold them, and the sums and squares of many."""

STOPPING = ("certificate", "validation")

GRID = tuple(float(10.0**e) for e in range(-6, 1))
"""The penalties of `l2="auto"`, in units of the layer's typical feature variance."""

SCORING = {
    "error": "lowest", "loss": "lowest", "balanced_accuracy": "highest", "f1": "highest",
    "auroc": "highest", "recall_at_1pct_fpr": "highest", "top5_accuracy": "highest",
    "calibration_error": "lowest",
}  # fmt: skip
"""The measures of a `Score` by which a penalty can be chosen, and which value of each is best."""


@dataclass(frozen=True)
class Options:
    """The checked arguments of `fit_probes` that are neither rows, labels nor weights.

    Attributes:
        solver: the algorithm.
        l2: penalties, host `(v,)`; None for `GRID` times the layer's typical feature variance.
        class_weight: None, "balanced", or a weight for each class named.
        bias, tol, cv, stopping, scoring, refit, standardize, seeds, max_passes, max_seconds,
            device, memory_limit: as given.
    """

    solver: Solver
    l2: np.ndarray | None
    bias: bool
    class_weight: str | dict[Any, float] | None
    tol: float
    cv: int | None
    stopping: str
    scoring: str
    refit: bool
    standardize: bool
    seeds: tuple[int, ...]
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
        """Whether rows have to be held out: to choose a penalty, to stop by, or for several seeds,
        which ask how much the draw matters."""
        several = self.l2 is None or len(self.l2) > 1 or len(self.seeds) > 1
        return self.stops_early or several


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


def check_seeds(seed: Any, *, draws: bool = True) -> tuple[int, ...]:
    """The seed, or the distinct seeds of a list; several are refused where no rows are drawn."""
    if isinstance(seed, str) or not isinstance(seed, Iterable):
        return (check_integer("seed", seed),)
    seeds = tuple(check_integer(f"seed[{i}]", value) for i, value in enumerate(seed))
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seed: expected an integer or distinct integers, found {seeds}")
    if len(seeds) > 1 and not draws:
        raise ValueError(
            "seed: several seeds draw several held-out fifths; omit cv= and validation="
        )
    return seeds


def check_l2(l2: Any) -> np.ndarray | None:
    """Penalties as a host vector, or None for "auto".

    Raises:
        TypeError: not a number, numbers or a string.
        ValueError: another string, an empty list, a negative or non-finite penalty.
    """
    if isinstance(l2, str):
        if l2 != "auto":
            raise ValueError(f'l2: expected a number, a list of numbers or "auto", found {l2!r}')
        return None
    single = isinstance(l2, Real) and not isinstance(l2, bool)
    values = np.atleast_1d(_numbers([l2] if single else l2, "l2", "iuf"))
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"l2: expected a number or a non-empty list, found shape {values.shape}")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"l2: expected finite penalties of at least 0, found {values.tolist()}")
    return values


def check_weights(weights: Any, rows: int) -> np.ndarray | None:
    """This rank's row weights as a host vector `(rows,)` float64, or None.

    Raises:
        TypeError: not numbers.
        ValueError: wrong length, or a weight that is negative, not finite, or so large or small
            that float32 could not hold sums of such weights.
    """
    if weights is None:
        return None
    values = _numbers(weights, "sample_weight", "biuf")
    if values.shape != (rows,):
        raise ValueError(f"sample_weight: expected shape ({rows},), found {values.shape}")
    low, high = WEIGHTS
    bad = ~((values == 0) | ((values >= low) & (values <= high)))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"sample_weight: expected 0 or a number from {low:g} to {high:g}, found {values[row]} "
            f"in row {row}; weights count relative to each other, so rescale them"
        )
    return values


def read_weights(weights: Any, rows: int, communicator: Communicator) -> np.ndarray | None:
    """The row weights of all ranks as a host vector `(n,)` float64, or None; see `check_weights`.

    Raises:
        ValueError: also if no weight of any rank is positive.
    """
    with communicator.raise_together():
        values = check_weights(weights, rows)
    if values is None:
        return None
    values = communicator.all_gather(values)
    if not (values > 0).any():
        raise ValueError("sample_weight: expected a positive weight, found none")
    return values


def _numbers(values: Any, what: str, kinds: str) -> np.ndarray:
    """Host float64 numbers in the shape of what is given; `kinds` of dtypes are numbers."""
    array = host_vector(values, what)
    if array.dtype == object and array.ndim == 1:
        array = np.array([check_real(f"{what}[{i}]", v) for i, v in enumerate(array.tolist())])
    if array.dtype.kind not in kinds:
        raise TypeError(f"{what}: expected numbers, found {shown(values)}")
    return array.astype(np.float64)
