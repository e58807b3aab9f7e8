"""Small input of `fit_probes`, good and bad, and what a refusal of it must say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from convexprobe import ProbeSet, fit_probes

N, D = 40, 3


def rows(n: int = N, d: int = D, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


LABELS = np.arange(N) % 2
GOOD = {"conv1": rows(), "fc1": rows(seed=1)}


def fit(activations: Any = GOOD, labels: Any = LABELS, **options: Any) -> ProbeSet:
    return fit_probes(activations, labels, **{"l2": 0.1, **options})


def spoiled(row: int, column: int, value: float, dtype: Any = np.float64) -> dict[str, Any]:
    x = rows().astype(dtype)
    x[row, column] = value
    return {"conv1": rows(), "fc1": x}


def weights(row: int, value: float) -> np.ndarray:
    out = np.ones(N)
    out[row] = value
    return out


Case = tuple[Callable[[], Any], type[Exception], list[str]]


def check_refused(case: Case) -> None:
    """The call raises exactly this error, whose message has all the words."""
    call, kind, words = case
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    for word in words:
        assert word in message, message
