"""Bad activations are refused at the door: where they are, what was expected, what was found."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from convexprobe import Status
from tests.refusals import LABELS, Case, D, N, check_refused, fit, rows, spoiled, weights

REFUSED: dict[str, Case] = {
    "NaN": (lambda: fit(spoiled(7, 2, np.nan)), ValueError, ["fc1", "finite", "nan", "row 7"]),
    "inf": (lambda: fit(spoiled(0, 1, np.inf)), ValueError, ["fc1", "inf", "row 0", "feature 1"]),
    "-inf": (lambda: fit(spoiled(39, 0, -np.inf)), ValueError, ["fc1", "-inf", "row 39"]),
    "NaN in float32": (
        lambda: fit(spoiled(7, 2, np.nan, np.float32)),
        ValueError,
        ["fc1", "nan", "row 7"],
    ),
    "NaN, auto": (lambda: fit(spoiled(7, 2, np.nan), l2="auto"), ValueError, ["fc1", "row 7"]),
    "inf, auto": (lambda: fit(spoiled(7, 2, np.inf), l2="auto"), ValueError, ["fc1", "row 7"]),
    "NaN in a row of weight 0": (
        lambda: fit(spoiled(7, 2, np.nan), sample_weight=weights(7, 0.0)),
        ValueError,
        ["fc1", "row 7"],
    ),
    "several bad rows": (
        lambda: fit({"fc1": np.where(np.arange(N)[:, None] > 34, np.nan, rows())}),
        ValueError,
        ["fc1", "row 35", "5 bad rows of 40"],
    ),
    "no layers": (lambda: fit({}), ValueError, ["activations", "at least one", "none"]),
    "layers of unequal lengths": (
        lambda: fit({"conv1": rows(), "fc1": rows(39)}),
        ValueError,
        ["fc1", "conv1", "40", "39"],
    ),
    "no rows": (lambda: fit({"fc1": rows(0)}, []), ValueError, ["fc1", "(0, 3)"]),
    "no features": (lambda: fit({"fc1": rows(d=0)}), ValueError, ["fc1", "(40, 0)"]),
    "one axis": (lambda: fit({"fc1": np.zeros(N)}), ValueError, ["fc1", "(rows, feat", "(40,)"]),
    "three axes": (lambda: fit({"fc1": np.zeros((N, 2, 2))}), ValueError, ["fc1", "(40, 2, 2)"]),
    "objects": (lambda: fit({"fc1": rows().astype(object)}), TypeError, ["fc1", "object"]),
    "strings": (lambda: fit({"fc1": rows().astype(str)}), TypeError, ["fc1", "numeric", "<U"]),
    "complex": (lambda: fit({"fc1": rows() + 1j}), TypeError, ["fc1", "real", "complex"]),
    "layer name": (lambda: fit({3: rows()}), TypeError, ["string", "3"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_place_the_expected_and_the_found(case: str) -> None:
    check_refused(REFUSED[case])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_are_found_in_every_library(bad: float, library: ModuleType) -> None:
    x = rows()
    x[11, 2] = bad
    with pytest.raises(ValueError, match=r"'fc1'.*row 11, feature 2"):
        fit({"fc1": library.asarray(x)}, library.asarray(LABELS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bad_values_are_found_in_half_precision(dtype: Any) -> None:
    x = torch.tensor(rows()).to(dtype)
    x[11, 2] = float("inf")
    with pytest.raises(ValueError, match=r"'fc1'.*inf in row 11, feature 2"):
        fit({"fc1": x}, torch.tensor(LABELS))


CONVERTED: dict[str, Callable[[np.ndarray], Any]] = {
    "int64": lambda x: x.astype(np.int64),
    "uint8": lambda x: x.astype(np.uint8),
    "bool": lambda x: x > 2,
    "nested list": lambda x: x.astype(int).tolist(),
    "torch int64": lambda x: torch.tensor(x.astype(np.int64)),
    "torch bool": lambda x: torch.tensor(x > 2),
    "big-endian": lambda x: x.astype(">f4"),
    "gradient": lambda x: torch.tensor(x, dtype=torch.float32, requires_grad=True),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_other_real_activations_are_converted(name: str) -> None:
    x = np.random.default_rng(0).integers(0, 5, size=(N, D)).astype(float)
    given = CONVERTED[name](x)
    plain = (x > 2).astype(np.float32) if "bool" in name else x.astype(np.float32)
    ours, theirs = fit({"fc1": given})["fc1"], fit({"fc1": plain})["fc1"]
    assert str(ours.weights.dtype).endswith("float32")
    assert ours.status is Status.CERTIFIED
    assert ours.objective == pytest.approx(theirs.objective, abs=1e-6)
