"""Probes without biases: every way to fit one finds the optimum over the weights alone."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from convexprobe import Probe, fit_probes, load_probes, remember
from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import to_numpy
from convexprobe.solvers.solution import Status
from tests.oracle import Data, minimum, random_data, reference

DATA = random_data(150, 5, 3, seed=3, weighted=True)
X = DATA.x


def check(probe: Probe, data: Data, bias: bool = False) -> None:
    """The probe is what it says, and as near the optimum as it says."""
    w = to_numpy(probe.weights).astype(np.float64).ravel()
    if bias:
        w = np.concatenate([w, to_numpy(probe.bias).astype(np.float64)])
    else:
        assert (to_numpy(probe.bias) == 0).all()
    value, _, _ = reference(data, w, probe.l2)
    best = minimum(data, probe.l2, bias=bias)[1]
    assert probe.status is Status.CERTIFIED
    assert value == pytest.approx(probe.objective, rel=1e-5)
    assert value - best <= probe.gap + 1e-7 and probe.gap <= 1e-3 * data.label_entropy


def test_the_weights_alone_are_fitted(library: ModuleType) -> None:
    x = library.asarray(X)
    probe = fit_probes(x, DATA.y, l2=1e-2, bias=False, sample_weight=DATA.weights)["activations"]
    check(probe, DATA)
    assert type(probe.bias) is type(x)


@pytest.mark.parametrize(
    "options",
    [{"l2": "auto"}, {"l2": [1e-1, 1e-3]}, {"l2": [1e-1, 1e-3], "cv": 3}, {"seed": [0, 1]},
     {"l2": [1e-3], "validation": (X[:50], DATA.y[:50])}, {"l2": 1e-6}],
    ids=str,
)  # fmt: skip
def test_every_way_to_choose_a_penalty_fits_without_biases(options: Any) -> None:
    options = {"l2": 1e-2, **options}
    probe = fit_probes(X, DATA.y, bias=False, sample_weight=DATA.weights, **options)["activations"]
    check(probe, DATA)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_wide_rows_and_rounding_end_at_the_same_optimum(dtype: type) -> None:
    data = random_data(30, 90, 3)
    stored = Data(data.x.astype(dtype).astype(np.float64), data.y, 3)
    check(fit_probes(data.x.astype(dtype), data.y, l2=1e-3, bias=False)["activations"], stored)
    far = Data(stored.x[:, :4] + 1e3, data.y, 3)  # float32 stalls, float64 goes on
    far = Data(far.x.astype(dtype).astype(np.float64), data.y, 3)
    check(fit_probes(far.x.astype(dtype), far.y, l2=1e-3, bias=False)["activations"], far)


def test_it_is_scikit_learns_problem_without_an_intercept() -> None:
    for k in (2, 3):
        data = random_data(100, 4, k)
        probe = fit_probes(data.x, data.y, l2=1e-2, tol=1e-9, bias=False)["activations"]
        theirs = LogisticRegression(C=probe.C, fit_intercept=False, tol=1e-10, max_iter=1000)
        theirs.fit(data.x, data.y)
        proba = probe.predict_proba(data.x)
        np.testing.assert_allclose(proba, theirs.predict_proba(data.x), atol=1e-4)


def test_concepts_and_early_stopping_have_no_biases_either() -> None:
    labels = {"three": DATA.y, "first": DATA.y == 0}
    probes = fit_probes(X, labels, l2=1e-2, bias=False)
    check(probes["activations/three"], Data(X, DATA.y, 3))
    check(probes["activations/first"], Data(X, (DATA.y == 0).astype(int), 2))
    early = fit_probes(X, DATA.y, l2=1e-2, bias=False, stopping="validation")["activations"]
    assert (early.bias == 0).all() and np.isfinite(early.gap)


def test_a_standardized_fit_has_the_bias_that_the_shift_leaves() -> None:
    probe = fit_probes(X, DATA.y, l2=1e-2, bias=False, standardize=True)["activations"]
    u = (X - X.mean(axis=0)) / X.std(axis=0)
    np.testing.assert_allclose(probe.bias, -probe.weights @ X.mean(axis=0), rtol=1e-9)
    by_hand = fit_probes(u, DATA.y, l2=1e-2, bias=False)["activations"]
    assert abs(probe.objective - by_hand.objective) <= probe.gap + by_hand.gap
    again = fit_probes(X, DATA.y, l2=1e-2, bias=False, standardize=True, warm_start=probe)
    assert again["activations"].start == "copied" and again["activations"].passes < 4


def test_earlier_probes_of_either_kind_are_starts() -> None:
    data = Data(X, DATA.y, 3)
    plain, without = (fit_probes(X, DATA.y, l2=1e-3, bias=b) for b in (True, False))
    for start in (plain, without, remember(plain, X), remember(without, X)):
        check(fit_probes(X, DATA.y, l2=1e-3, bias=False, warm_start=start)["activations"], data)
        check(fit_probes(X, DATA.y, l2=1e-3, warm_start=start)["activations"], data, bias=True)
    again = fit_probes(X, DATA.y, l2=1e-3, bias=False, warm_start=without)["activations"]
    assert again.start == "copied" and again.passes < 4


def test_a_file_keeps_biases_of_zero_and_absent_classes(tmp_path: Path) -> None:
    probes = fit_probes(X, DATA.y, l2=1e-2, bias=False, classes=[0, 1, 2, 3])
    assert probes["activations"].bias.tolist() == [0.0, 0.0, 0.0, -np.inf]
    probes.save(tmp_path / "probes.safetensors")
    again = load_probes(tmp_path / "probes.safetensors")["activations"]
    assert again.bias.tolist() == [0.0, 0.0, 0.0, -np.inf]
    np.testing.assert_array_equal(again.predict(X), probes["activations"].predict(X))


def test_rows_that_are_streamed_give_the_same_probe() -> None:
    probe = fit_probes(X, DATA.y, l2=1e-2, bias=False, memory_limit=3000.0)["activations"]
    check(probe, Data(X, DATA.y, 3))
    assert Rows(X).n * X.shape[1] * 8 > 3000


def test_a_bias_that_is_no_boolean_is_refused() -> None:
    with pytest.raises(TypeError, match="bias: expected"):
        fit_probes(X, DATA.y, bias="no")  # type: ignore[arg-type]
