"""Options and weights are checked before any work is done."""

from __future__ import annotations

import numpy as np
import pytest

from tests.refusals import GOOD, LABELS, Case, N, check_refused, fit, weights

REFUSED: dict[str, Case] = {
    "cv and validation": (
        lambda: fit(cv=5, validation=(GOOD, LABELS)),
        ValueError,
        ["cv", "validation="],
    ),
    "cv and early stopping": (
        lambda: fit(cv=5, stopping="validation"),
        ValueError,
        ["cv", "stopping="],
    ),
    "stopping": (lambda: fit(stopping="early"), ValueError, ["stopping", "'early'"]),
    "one fold": (lambda: fit(cv=1), ValueError, ["cv", "at least 2", "1"]),
    "folds in words": (lambda: fit(cv="five"), TypeError, ["cv", "an integer", "'five'"]),
    "negative weight": (lambda: fit(sample_weight=weights(4, -1.0)), ValueError, ["-1", "row 4"]),
    "NaN weight": (lambda: fit(sample_weight=weights(4, np.nan)), ValueError, ["nan", "row 4"]),
    "inf weight": (lambda: fit(sample_weight=weights(4, np.inf)), ValueError, ["inf", "row 4"]),
    "too few weights": (lambda: fit(sample_weight=np.ones(39)), ValueError, ["(40,)", "(39,)"]),
    "no weight": (lambda: fit(sample_weight=np.zeros(N)), ValueError, ["positive weight"]),
    "solver": (lambda: fit(solver="newton_cg"), ValueError, ["newton_cg", "'newton-cg'", "adam"]),
    "far solver": (lambda: fit(solver="zzz"), ValueError, ["zzz", "newton-cg, lbfgs"]),
    "negative l2": (lambda: fit(l2=-1e-3), ValueError, ["l2", "at least 0", "-0.001"]),
    "negative l2 in a path": (lambda: fit(l2=[1.0, -1.0]), ValueError, ["l2", "-1"]),
    "NaN l2": (lambda: fit(l2=np.nan), ValueError, ["l2", "finite", "nan"]),
    "inf l2": (lambda: fit(l2=np.inf), ValueError, ["l2", "finite", "inf"]),
    "no l2": (lambda: fit(l2=[]), ValueError, ["l2", "non-empty"]),
    "word l2": (lambda: fit(l2="best"), ValueError, ["l2", '"auto"', "'best'"]),
    "tol 0": (lambda: fit(tol=0), ValueError, ["tol", "above 0", "found 0"]),
    "negative tol": (lambda: fit(tol=-1e-3), ValueError, ["tol", "-0.001"]),
    "NaN tol": (lambda: fit(tol=np.nan), ValueError, ["tol", "nan"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused_with_the_place_the_expected_and_the_found(case: str) -> None:
    check_refused(REFUSED[case])
