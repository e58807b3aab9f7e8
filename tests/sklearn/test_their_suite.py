"""scikit-learn's own tests of logistic regression, from the installed wheel, on these classes.

The slowest of them, and SAG's and SAGA's, run where CONVEXPROBE_ALL_CHECKS is set; those of array
libraries where SCIPY_ARRAY_API is 1, as theirs do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.utils.fixes

import convexprobe.sklearn as ours

REFUSED = {
    "L1 and elastic net": (
        "test_check_solver_option", "test_elastic_net_coeffs", "test_elastic_net_l1_l2_equivalence",
        "test_elastic_net_vs_l1_l2", "test_LogisticRegression_elastic_net_objective",
        "test_LogisticRegressionCV_GridSearchCV_elastic_net", "test_logreg_l1",
        "test_LogisticRegressionCV_elasticnet_attribute_shapes", "test_l1_ratio_non_elasticnet",
        "test_elastic_net_versus_sgd", "test_scores_attribute_layout_elasticnet",
        "test_lr_penalty_l1ratio_incompatible", "test_elasticnet_l1_ratio_err_helpful",
    ),
    "liblinear": (
        "test_liblinear_dual_random_state", "test_logistic_cv",
        "test_sample_and_class_weight_equivalence_liblinear",
        "test_liblinear_decision_function_zero", "test_saga_vs_liblinear",
        "test_logisticregression_liblinear_sample_weight",
        "test_liblinear_with_large_values", "test_liblinear_not_stuck",
        "test_liblinear_multiclass_raises", "test_logreg_intercept_scaling_zero",
        "test_consistency_path",
    ),
    "sparse rows": ("test_large_sparse_matrix", "test_logistic_cv_sparse"),
    "functions of theirs beside the classes": (
        "test_logistic_regression_path_convergence_fail",
        "test_logistic_regression_path_init_coefs",
        "test_logistic_regression_path_coefs_multinomial",
    ),
    "SAGA to seven digits, where float64's objective tells eight of the largest coefficient": (
        "test_logistic_regression_cv_refit",
    ),
    "their solver falls back to another": ("test_newton_cholesky_fallback_to_lbfgs",),
    "zero steps leave the best constant classifier here, and zeros there": ("test_zero_max_iter",),
    "callbacks": (
        "test_logistic_regression_callback_support",
        "test_logistic_regression_callback_fitted_estimator",
        "test_logistic_regression_callback_support_warning",
    ),
    "warnings of what their next versions change": (
        "test_penalty_deprecated", "test_logisticregressioncv_warns_with_use_legacy_attributes",
        "test_l1_ratio_None_deprecated", "test_logisticregression_warns_with_n_jobs",
        "test_lr_scoring_warns",
    ),
}  # fmt: skip
"""Their tests of what is not here, by the reason."""

ABSENT = ("cupy", "dpnp")
"""Array libraries of which no test runs here."""

PARAMETERS: dict[str, Callable[[Any], bool]] = {
    "test_max_iter": lambda value: value[0] in ("newton-cg", "lbfgs"),  # others word it otherwise
    "test_logistic_cv_multinomial_score": lambda value: value[0] != "neg_log_loss",  # see below
    "test_LogisticRegressionCV_no_refit": lambda value: len(value) == 1,
}
"""Which values of a parameter to keep, where only some are of the L2 penalty."""


EVERYTHING = "CONVEXPROBE_ALL_CHECKS" in os.environ
if os.environ.get("SCIPY_ARRAY_API") != "1":
    REFUSED["array libraries, which they skip too"] = (
        "test_logistic_regression_array_api_compliance",
        "test_logistic_regression_array_api_warm_start",
    )
SLOW = {"test_multinomial_cv_iris", "test_logistic_regression_solvers_multiclass"}
SLOW_SOLVERS = () if EVERYTHING else ("sag", "saga")


def load() -> ModuleType:
    """Their module, in which the two names are of this package and sparse rows are dense."""
    spec = find_spec("sklearn.linear_model.tests.test_logistic")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    with (
        patch.object(sklearn.linear_model, "LogisticRegression", ours.LogisticRegression),
        patch.object(sklearn.linear_model, "LogisticRegressionCV", ours.LogisticRegressionCV),
        patch.object(sklearn.utils.fixes, "CSR_CONTAINERS", [np.array]),
    ):
        spec.loader.exec_module(module)
    module.SOLVERS = tuple(s for s in module.SOLVERS if s != "liblinear")
    return module


def kept(name: str, test: Callable[..., None]) -> Callable[..., None]:
    """Their test without the parameters that ask for what is not here."""
    marks = []
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names, values = mark.args
            if names == "solver":
                values = [v for v in values if v not in ("liblinear", *SLOW_SOLVERS)]
            values = [v for v in values if not isinstance(v, tuple) or v[0] not in ABSENT]
            if (
                any(word in names for word in ("solver", "l1_ratio", "scoring"))
                and name in PARAMETERS
            ):
                values = [v for v in values if PARAMETERS[name](v)]
            mark = pytest.mark.parametrize(names, values, **mark.kwargs).mark
        marks.append(mark)
    test.pytestmark = marks  # type: ignore[attr-defined]
    return test


theirs = load()
pytestmark = [
    theirs.pytestmark,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),  # as theirs are
]


@pytest.fixture
def global_random_seed() -> int:
    """The seed that their tests take by default."""
    return 42


_refused = {name for names in REFUSED.values() for name in names}
globals().update(
    {
        name: kept(name, value)
        for name, value in vars(theirs).items()
        if name.startswith("test_") and name not in (_refused if EVERYTHING else _refused | SLOW)
    }
)


def test_every_test_that_is_left_out_exists() -> None:
    assert _refused <= set(vars(theirs))


def test_a_score_of_theirs_agrees_where_they_solve_as_far() -> None:
    """Their test of the log loss compares with their path at their default tolerance."""
    x, y = theirs.make_classification(n_samples=100, random_state=42, n_classes=3, n_informative=6)
    train, test = np.arange(80), np.arange(80, 100)
    settings = {"classes": np.unique(y), "Cs": [1.0], "scoring": "neg_log_loss", "tol": 1e-8}
    rest = {
        "max_squared_sum": None,
        "sample_weight": None,
        "score_params": None,
        "fit_intercept": 1,
    }
    rest |= {"max_iter": 1000, "class_weight": None, "dual": False, "intercept_scaling": 1.0}
    rest |= {"penalty": "l2", "solver": "lbfgs", "verbose": 0, "random_state": 0, "l1_ratio": 0.0}
    score = theirs._log_reg_scoring_path(x, y, train, test, **settings, **rest)[2][0]
    model = ours.LogisticRegression().fit(x[train], y[train])
    assert theirs.get_scorer("neg_log_loss")(model, x[test], y[test]) == pytest.approx(score, 1e-4)
