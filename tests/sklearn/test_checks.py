"""scikit-learn's checks of estimators: all of them for the default solver."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from convexprobe.sklearn import LogisticRegression, LogisticRegressionCV
from convexprobe.solvers import SOLVERS

CERTIFYING = [name for name in SOLVERS if name not in ("auto", "adam", "rmsprop")]

ROUNDED = {
    "check_sample_weight_equivalence_on_dense_data": "logits agree to 1e-8, and 1e-9 is asked for"
}

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning",
    "ignore::sklearn.exceptions.SkipTestWarning",
    "ignore:The least populated class:UserWarning",
)


@parametrize_with_checks([LogisticRegression(), LogisticRegressionCV(Cs=3, cv=3)])
def test_the_default_passes_every_check(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


if "CONVEXPROBE_ALL_CHECKS" in os.environ:

    @parametrize_with_checks(
        [LogisticRegression(solver=name, tol=1e-9, max_iter=1000) for name in CERTIFYING],
        expected_failed_checks=lambda estimator: ROUNDED if estimator.solver == "katyusha" else {},
    )
    def test_every_solver_that_certifies_passes_every_check(
        estimator: Any, check: Callable[[Any], None]
    ) -> None:
        check(estimator)
