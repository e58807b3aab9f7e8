"""The estimators: scikit-learn's problem and conventions, with a certificate of every fit."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
import sklearn.linear_model
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from convexprobe import SOLVERS, NewtonCG, Status, fit_probes
from convexprobe.sklearn import LogisticRegression, LogisticRegressionCV
from tests.oracle import Data, minimum, random_data

MANY, TWO = random_data(150, 5, 3, seed=1), random_data(120, 4, 2, seed=2)
FIRST_ORDER = ("adam", "rmsprop")


def their_value(model: Any, data: Data, C: float) -> float:
    """scikit-learn's objective of a fitted model: C times the sum of losses, plus the penalty."""
    log_p = model.predict_log_proba(data.x)[np.arange(len(data.y)), data.y]
    s = np.ones(len(data.y)) if data.weights is None else data.weights
    return float(-C * s @ log_p + 0.5 * np.sum(model.coef_**2))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("data", [MANY, TWO], ids=["three classes", "two classes"])
def test_it_is_their_problem_and_the_gap_is_of_it(data: Data, C: float, intercept: bool) -> None:
    s = np.random.default_rng(0).exponential(size=len(data.y))
    data = Data(data.x, data.y, data.k, s)
    settings = {"C": C, "fit_intercept": intercept}
    model = LogisticRegression(**settings).fit(data.x, data.y, s)
    theirs = sklearn.linear_model.LogisticRegression(
        solver="newton-cholesky", tol=1e-10, **settings
    ).fit(data.x, data.y, s)
    assert model.status_ is Status.CERTIFIED
    worse = their_value(model, data, C) - their_value(theirs, data, C)
    scale = C * s.sum()
    assert -1e-9 * scale <= worse <= model.gap_ * scale + 1e-9 * scale
    assert model.gap_ <= 1e-8 * data.label_entropy
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(model.intercept_, theirs.intercept_, atol=2e-3)
    assert model.coef_.shape == theirs.coef_.shape
    assert model.intercept_.shape == theirs.intercept_.shape
    assert model.n_iter_.shape == (1,) and 1 <= model.n_iter_[0] <= 100
    best = minimum(data, model.probe_.l2, bias=intercept)[1]
    assert -1e-12 <= model.probe_.objective - best <= model.gap_ + 1e-12
    np.testing.assert_allclose(model.probe_.C, C)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_has_the_same_answer(solver: str) -> None:
    reference = LogisticRegression().fit(MANY.x, MANY.y)
    model = LogisticRegression(solver=solver, tol=1e-2 if solver in FIRST_ORDER else 1e-3)
    with warnings.catch_warnings():
        if solver in FIRST_ORDER:
            warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(MANY.x, MANY.y)
    assert model.probe_.objective - reference.probe_.objective <= model.gap_
    proba = model.predict_proba(MANY.x)
    np.testing.assert_allclose(proba, reference.predict_proba(MANY.x), atol=0.05)


@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_that_run_out_are_counted_and_told(solver: str) -> None:
    model = LogisticRegression(C=1e4, tol=1e-6, max_iter=2, solver=solver)
    with pytest.warns(ConvergenceWarning, match=f"{solver} failed to converge: after max_iter=2"):
        model.fit(MANY.x, MANY.y)
    assert model.n_iter_.tolist() == [2] and model.status_ is Status.MAX_STEPS


def test_a_probe_of_the_same_rows_agrees() -> None:
    model = LogisticRegression(C=0.5, class_weight="balanced").fit(MANY.x, MANY.y)
    probe = fit_probes(MANY.x, MANY.y, l2=model.probe_.l2, class_weight="balanced", tol=1e-8)
    np.testing.assert_allclose(model.coef_, probe["activations"].weights, atol=1e-3)
    np.testing.assert_array_equal(model.coef_, model.probe_.weights)
    np.testing.assert_allclose(model.coef_.sum(axis=0), 0.0, atol=1e-12)


def test_labels_weights_and_names_are_as_theirs() -> None:
    names = np.array(["ant", "bee", "cat"])[MANY.y]
    frame = pd.DataFrame(MANY.x, columns=list("abcde"))
    weights = {"ant": 1.0, "bee": 3.0, "cat": 0.5}
    model = LogisticRegression(class_weight=weights).fit(frame, names)
    theirs = sklearn.linear_model.LogisticRegression(class_weight=weights, tol=1e-8)
    theirs.fit(frame, names)
    assert model.classes_.tolist() == ["ant", "bee", "cat"]
    assert model.feature_names_in_.tolist() == list("abcde") and model.n_features_in_ == 5
    assert (model.predict(frame) == theirs.predict(frame)).all()
    np.testing.assert_allclose(model.decision_function(frame), theirs.decision_function(frame),
                               atol=2e-3)  # fmt: skip
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"a": "z"}))


def test_float32_stays_float32() -> None:
    model = LogisticRegression().fit(MANY.x.astype(np.float32), MANY.y)
    assert model.coef_.dtype == model.intercept_.dtype == np.float32
    assert model.status_ is Status.CERTIFIED


def test_a_class_of_weight_zero_is_kept_out() -> None:
    for data in (MANY, TWO):
        weights = (data.y > 0).astype(float)
        model = LogisticRegression().fit(data.x, data.y, weights)
        assert (model.predict_proba(data.x)[:, 0] == 0).all()
        assert np.isneginf(model.predict_log_proba(data.x)[:, 0]).all()
        assert (model.predict(data.x) > 0).all()


def test_no_penalty_has_no_bound_but_zero() -> None:
    noisy = random_data(200, 3, 3, seed=5)
    model = LogisticRegression(C=np.inf).fit(noisy.x, noisy.y)
    theirs = sklearn.linear_model.LogisticRegression(C=np.inf, tol=1e-8).fit(noisy.x, noisy.y)
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=1e-3)
    assert model.status_ is Status.UNCERTIFIED and model.gap_ >= model.probe_.objective
    easy = LogisticRegression(C=np.inf).fit([[-1.0], [1.0], [2.0]], [0, 1, 1])
    assert easy.status_ is Status.SEPARABLE
    with pytest.warns(UserWarning, match="penalty=None will ignore the C"):
        LogisticRegression(penalty=None, C=3.0).fit(noisy.x, noisy.y)


def test_a_warm_start_takes_fewer_steps_to_the_same_point() -> None:
    for data in (MANY, TWO):
        model = LogisticRegression(C=10.0, solver="lbfgs", warm_start=True).fit(data.x, data.y)
        first, steps = model.coef_, model.n_iter_[0]
        model.fit(data.x, data.y)
        assert model.n_iter_[0] < steps and model.probe_.start == "copied"
        np.testing.assert_allclose(model.coef_, first, atol=1e-3)
        model.sparsify().fit(data.x, data.y)
        with pytest.raises(ValueError, match=r"warm_start: expected coef_ of shape"):
            model.fit(data.x[:, :3], data.y)


def test_it_is_cloned_pickled_and_dumped(tmp_path: Path) -> None:
    model = LogisticRegression(C=2.0, solver=NewtonCG(rows=50)).fit(MANY.x, MANY.y)
    assert clone(model).get_params() == model.get_params()
    joblib.dump(model, tmp_path / "model.joblib")
    for again in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")):
        np.testing.assert_array_equal(again.predict_proba(MANY.x), model.predict_proba(MANY.x))
        assert again.status_ is model.status_ and again.probe_.gap == model.gap_


def test_the_seed_decides_and_no_global_state_moves() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    draws = [
        LogisticRegression(solver="saga", tol=0.03, random_state=seed).fit(MANY.x, MANY.y).coef_
        for seed in (None, None, 1, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[2], draws[3])
    assert (draws[0] != draws[2]).any()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_pipelines_searches_and_calibration_take_it_as_theirs() -> None:
    y = np.array(["no", "yes", "no"])[MANY.y]
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression()),
        {
            "logisticregression__C": [0.01, 1.0, 100.0],
            "logisticregression__fit_intercept": [True, False],
            "logisticregression__solver": ["auto", "lbfgs"],
        },
        cv=3,
    ).fit(MANY.x, y)
    theirs = GridSearchCV(
        make_pipeline(StandardScaler(), sklearn.linear_model.LogisticRegression()),
        {
            "logisticregression__C": [0.01, 1.0, 100.0],
            "logisticregression__fit_intercept": [True, False],
        },
        cv=3,
    ).fit(MANY.x, y)
    assert search.best_score_ == pytest.approx(theirs.best_score_)
    assert search.best_estimator_[-1].status_ is Status.CERTIFIED
    for kind in ("sigmoid", "isotonic"):
        pair = [
            CalibratedClassifierCV(model, method=kind, cv=3).fit(MANY.x, y).predict_proba(MANY.x)
            for model in (LogisticRegression(), sklearn.linear_model.LogisticRegression(tol=1e-8))
        ]
        np.testing.assert_allclose(*pair, atol=2e-2)
    scores = cross_val_score(LogisticRegression(), MANY.x, y, cv=4, scoring="neg_log_loss")
    others = cross_val_score(
        sklearn.linear_model.LogisticRegression(), MANY.x, y, cv=4, scoring="neg_log_loss"
    )
    np.testing.assert_allclose(scores, others, rtol=1e-3)


def test_weights_are_routed() -> None:
    weights = np.random.default_rng(0).exponential(size=len(MANY.y))
    with sklearn.config_context(enable_metadata_routing=True):
        model = LogisticRegression().set_fit_request(sample_weight=True)
        pipe = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), model)
        pipe.fit(MANY.x, MANY.y, sample_weight=weights)
    x = StandardScaler().fit_transform(MANY.x)
    alone = LogisticRegression().fit(x, MANY.y, weights)
    np.testing.assert_array_equal(pipe[-1].coef_, alone.coef_)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("data", [MANY, TWO], ids=["three classes", "two classes"])
def test_the_choice_by_folds_is_theirs(data: Data, legacy: bool) -> None:
    settings = {"Cs": 5, "cv": 4, "scoring": "neg_log_loss", "use_legacy_attributes": legacy}
    settings |= {"class_weight": "balanced", "l1_ratios": (0,)}
    model = LogisticRegressionCV(**settings).fit(data.x, data.y)
    theirs = sklearn.linear_model.LogisticRegressionCV(
        solver="newton-cholesky", tol=1e-8, **settings
    ).fit(data.x, data.y)
    np.testing.assert_array_equal(model.C_, theirs.C_)
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=2e-3)
    for name in ("scores_", "coefs_paths_"):
        one, other = getattr(model, name), getattr(theirs, name)
        assert type(one) is type(other)
        for key in one if legacy else [slice(None)]:
            np.testing.assert_allclose(one[key], other[key], atol=5e-3, rtol=1e-3)
    for name in ("n_iter_", "Cs_", "l1_ratios_", "intercept_"):
        assert getattr(model, name).shape == getattr(theirs, name).shape, name
    assert model.status_ is Status.CERTIFIED
    assert model.gaps_.shape == (4, 5) and (model.gaps_ <= 1.1e-8).all()
    assert (model.statuses_ == Status.CERTIFIED).all()
    assert model.score(data.x, data.y) == pytest.approx(theirs.score(data.x, data.y), rel=1e-4)


@pytest.mark.parametrize("solver", ["auto", "lbfgs", "saga"])
def test_the_refit_is_the_fit_with_that_C(solver: str) -> None:
    settings = {"solver": solver, "max_iter": 10_000, "tol": 1e-12}
    chosen = LogisticRegressionCV(Cs=[1.0], cv=3, **settings).fit(TWO.x, TWO.y)
    alone = LogisticRegression(C=1.0, **settings).fit(TWO.x, TWO.y)
    np.testing.assert_allclose(chosen.coef_, alone.coef_, atol=1e-6)
    np.testing.assert_allclose(chosen.intercept_, alone.intercept_, atol=1e-6)


def test_folds_are_dealt_out_over_processes_and_averaged_without_a_refit() -> None:
    settings = {"Cs": [0.1, 1.0], "cv": 2, "refit": False}
    alone = LogisticRegressionCV(**settings).fit(MANY.x, MANY.y)
    with joblib.parallel_backend("threading"):
        spread = LogisticRegressionCV(n_jobs=2, **settings).fit(MANY.x, MANY.y)
    np.testing.assert_array_equal(alone.coef_, spread.coef_)
    assert not hasattr(alone, "gap_") and alone.gaps_.shape == (2, 2)
    theirs = sklearn.linear_model.LogisticRegressionCV(
        l1_ratios=(0,), use_legacy_attributes=False, scoring="accuracy", tol=1e-8, **settings
    ).fit(MANY.x, MANY.y)
    np.testing.assert_allclose(alone.coef_, theirs.coef_, atol=2e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": "l1"}, "l1_ratio: only the L2 penalty"),
        ({"penalty": "elasticnet"}, "l1_ratio: only the L2 penalty"),
        ({"l1_ratio": 0.5}, "l1_ratio: only the L2 penalty"),
        ({"penalty": "l3"}, 'penalty: expected "l2" or None'),
        ({"dual": True}, "dual: only the primal"),
        ({"solver": "liblinear"}, "solver: 'liblinear'"),
        ({"solver": "lbfsg"}, "lbfgs"),
        ({"C": 0.0}, "C: expected a number above 0"),
        ({"tol": -1.0}, "tol: expected a number above 0"),
        ({"max_iter": -1}, "max_iter: expected"),
        ({"max_iter": 2.5}, "max_iter: expected an integer"),
        ({"fit_intercept": "yes"}, "fit_intercept: expected"),
        ({"class_weight": {7: 2.0}}, "class_weight: expected the class labels"),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused_in_a_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        LogisticRegression(**settings).fit(MANY.x, MANY.y)
    assert "\n" not in str(caught.value)


def test_rows_and_weights_that_cannot_be_fitted_are_refused() -> None:
    model, x, y = LogisticRegression(), MANY.x, MANY.y
    for bad, match in (
        ((scipy.sparse.csr_array(x), y), "dense data is required"),
        ((x, np.zeros(150)), "at least 2 classes"),
        ((x * 1e200, y), "X: expected finite values below"),
        ((x, y, -np.ones(150)), "sample_weight: expected 0 or a number"),
        ((x, y, np.zeros(150)), "only zero weights"),
        ((x, y, np.ones(3)), "sample_weight: expected shape"),
        ((x, np.linspace(0, 1, 150)), "continuous"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            model.fit(*bad)
    for settings, match in (
        ({"l1_ratios": (0.5,)}, "l1_ratios: only the L2 penalty"),
        ({"l1_ratios": (0, 0)}, "l1_ratios: expected None or"),
        ({"Cs": [1.0, -1.0]}, r"Cs\[1\]: expected"),
        ({"Cs": []}, "Cs: expected at least one"),
        ({"refit": 1}, "refit: expected"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            LogisticRegressionCV(**settings).fit(x, y)


DISPATCHED = """
import numpy as np, sklearn, torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from convexprobe.sklearn import LogisticRegression
from tests.oracle import random_data
sklearn.set_config(array_api_dispatch=True)
for k in (2, 3):
    data = random_data(150, 5, k)
    expected = LogisticRegression(warm_start=True).fit(data.x, data.y)
    for dtype in (torch.float32, torch.float64):
        x, y = torch.tensor(data.x, dtype=dtype), torch.tensor(data.y)
        model = LogisticRegression(warm_start=True)
        for _ in range(2):
            model.fit(x, y)
        for array in (model.coef_, model.intercept_, model.predict_proba(x), model.probe_.weights):
            assert array.dtype == dtype
        assert isinstance(model.classes_, torch.Tensor) and model.predict(x).dtype == torch.int64
        np.testing.assert_allclose(model.coef_.numpy(), expected.coef_, atol=2e-3)
        words = np.array(["a", "b", "c"])[data.y]
        pipe = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, words)
        assert set(pipe.predict(x)) <= {"a", "b", "c"}
print("torch in, torch out")
"""


def test_with_dispatch_tensors_come_back_as_tensors() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DISPATCHED],
        env=os.environ | {"SCIPY_ARRAY_API": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "torch in, torch out\n", done.stderr
