"""Fitting in every form: arrays and layers, penalties, weights, classes, warm starts, budgets."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from convexprobe import Probe, ProbeSet, Status, fit_probes
from convexprobe.probes.options import GRID
from convexprobe.probes.splits import hold_out
from tests.claims import parameters
from tests.oracle import Data, minimum, random_data, reference

DATA = random_data(200, 6, 3)
HELD = random_data(100, 6, 3, seed=7)


def check(probe: Probe, data: Data, l2: float, tol: float = 1e-3) -> None:
    """The probe says the truth and is optimal to `tol`."""
    best = minimum(data, l2)[1]
    value = reference(data, parameters(probe), l2)[0]
    assert probe.status is Status.CERTIFIED
    assert probe.l2 == pytest.approx(l2)
    assert probe.objective == pytest.approx(value, abs=1e-6)
    assert probe.loss == pytest.approx(reference(data, parameters(probe), 0.0)[0], abs=1e-6)
    assert -1e-9 <= value - best <= probe.gap + 1e-9
    assert probe.gap <= tol * data.label_entropy
    s = np.ones(len(data.y)) if data.weights is None else data.weights
    wrong = s @ (probe.predict(data.x) != data.y) / s.sum()
    assert probe.train_error == pytest.approx(wrong, abs=1e-9)
    assert probe.rows == pytest.approx(s.sum())


def test_one_array_is_one_layer() -> None:
    probes = fit_probes(DATA.x, DATA.y, l2=1e-2)
    assert list(probes) == ["activations"] and len(probes) == 1
    probe = probes["activations"]
    check(probe, DATA, 1e-2)
    assert probe.path == () and probe.validation_error is None
    assert probe.classes == (0, 1, 2) and probe.weights.shape == (3, 6)
    assert probe.passes > 0 and probe.seconds > 0


@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs"])
def test_layers_keep_their_order_and_library(solver: str, library: ModuleType) -> None:
    wide = random_data(200, 9, 3, seed=1)
    layers = {"z": library.asarray(DATA.x), "a": library.asarray(wide.x)}
    probes = fit_probes(layers, library.asarray(DATA.y), solver, l2=1e-2)
    assert list(probes) == ["z", "a"]
    check(probes["z"], DATA, 1e-2)
    check(probes["a"], Data(wide.x, DATA.y, 3), 1e-2)
    for probe in probes.values():
        assert type(probe.weights) is type(probe.bias) is type(layers["z"])
        assert probe.weights.dtype == library.float64


@pytest.mark.parametrize("k", [2, 3])
def test_C_is_what_scikit_learn_calls_it(k: int) -> None:
    data = random_data(150, 4, k, weighted=True)
    assert data.weights is not None
    probe = fit_probes(data.x, data.y, l2=0.05, tol=1e-9, sample_weight=data.weights)["activations"]
    model = LogisticRegression(C=probe.C, solver="newton-cholesky", tol=1e-10, max_iter=500)
    model.fit(data.x, data.y, data.weights)
    theirs, ours = model.predict_proba(data.x), probe.predict_proba(data.x)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    free = fit_probes(data.x, data.y, l2=0.0, max_passes=5)["activations"]
    assert np.isposinf(free.C)


def test_a_list_of_l2_is_a_path_chosen_on_the_validation_rows() -> None:
    path = [1.0, 1e-1, 1e-3]
    probe = fit_probes(DATA.x, DATA.y, l2=path, validation=(HELD.x, HELD.y))["activations"]
    check(probe, DATA, probe.l2)
    assert [point.l2 for point in probe.path] == path
    by_hand = [
        fit_probes(DATA.x, DATA.y, l2=l2, validation=(HELD.x, HELD.y))["activations"] for l2 in path
    ]
    for point, alone in zip(probe.path, by_hand, strict=True):
        score = alone.evaluate(HELD.x, HELD.y)
        assert alone.validation_error == score.error
        assert point.validation_error == pytest.approx(score.error, abs=0.02)  # a row or two
        assert point.validation_loss == pytest.approx(score.loss, abs=0.02)
        assert point.status is Status.CERTIFIED
        assert abs(point.loss - alone.loss) < 0.05
    best = min(probe.path, key=lambda p: (p.validation_error, p.validation_loss))
    assert probe.l2 == best.l2 and probe.validation_error == best.validation_error
    assert probe.evaluate(HELD.x, HELD.y).error == best.validation_error


def test_auto_holds_out_a_fifth_of_each_class() -> None:
    probe = fit_probes(DATA.x, DATA.y, seed=3, refit=False)["activations"]
    variance = DATA.x.var(axis=0).mean()  # none is ten times the median
    grid = np.asarray(GRID)[::-1] * variance
    np.testing.assert_allclose([p.l2 for p in probe.path], grid[: len(probe.path)], rtol=1e-9)
    counts = np.bincount(DATA.y)
    assert probe.rows == 200 - np.sum(counts // 5)
    assert probe.validation_error == min(p.validation_error for p in probe.path)
    again = fit_probes(DATA.x, DATA.y, seed=3, refit=False)["activations"]
    np.testing.assert_array_equal(again.weights, probe.weights)
    other = fit_probes(DATA.x, DATA.y, seed=4, refit=False)["activations"]
    assert (other.weights != probe.weights).any()


def test_auto_follows_the_scale_of_the_layer() -> None:
    one, big = (fit_probes(s * DATA.x, DATA.y)["activations"] for s in (1.0, 64.0))
    assert big.l2 == pytest.approx(64.0**2 * one.l2)
    assert big.validation_error == pytest.approx(one.validation_error, abs=0.05)
    np.testing.assert_allclose([p.loss for p in big.path], [p.loss for p in one.path], atol=2e-3)


def test_held_out_rows_are_not_fitted_to() -> None:
    # Rows that are held out may carry any features without changing the probe at one l2.
    probe = fit_probes(DATA.x, DATA.y, l2=[0.1, 0.2], seed=0, refit=False)["activations"]
    held = hold_out(DATA.y, None, 0)
    moved = DATA.x.copy()
    moved[held] = 0.0
    other = fit_probes(moved, DATA.y, l2=[0.1, 0.2], seed=0, refit=False)["activations"]
    for a, b in zip(probe.path, other.path, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=2e-3)
    kept = Data(DATA.x[~held], DATA.y[~held], 3)
    check(probe, replace(DATA, weights=(~held).astype(float)), probe.l2)
    assert probe.objective - minimum(kept, probe.l2)[1] <= probe.gap


def test_weights_and_repeated_rows_are_the_same() -> None:
    counts = np.random.default_rng(0).integers(0, 4, 200)
    weighted = fit_probes(DATA.x, DATA.y, l2=0.1, sample_weight=counts, tol=1e-9)["activations"]
    rows = np.repeat(np.arange(200), counts)
    repeated = fit_probes(DATA.x[rows], DATA.y[rows], l2=0.1, tol=1e-9)["activations"]
    np.testing.assert_allclose(parameters(weighted)[:18], parameters(repeated)[:18], atol=1e-3)
    assert weighted.train_error == pytest.approx(repeated.train_error, abs=1e-9)
    assert abs(weighted.C / repeated.C - 1) < 1e-6


def test_classes_fix_the_order_and_may_have_no_rows() -> None:
    names = np.array(["ant", "bee", "cat"])[DATA.y]
    probe = fit_probes(DATA.x, names, l2=0.1, classes=["dog", "cat", "bee", "ant"])["activations"]
    assert probe.classes == ("dog", "cat", "bee", "ant")
    assert probe.bias[0] == -np.inf and not probe.weights[0].any()
    p = probe.predict_proba(DATA.x)
    assert (p[:, 0] == 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert probe.predict(DATA.x).dtype.kind == "U"
    plain = fit_probes(DATA.x, names, l2=0.1)["activations"]
    assert plain.classes == ("ant", "bee", "cat")
    np.testing.assert_allclose(plain.predict_proba(DATA.x), p[:, [3, 2, 1]], atol=0.05)
    score = probe.evaluate(DATA.x[:2], ["dog", "ant"])
    assert score.loss == np.inf


def test_tuples_may_be_classes() -> None:
    names = [("cat", int(c)) for c in DATA.y]
    probe = fit_probes(DATA.x, names, l2=0.1)["activations"]
    assert probe.classes == (("cat", 0), ("cat", 1), ("cat", 2))
    predicted = probe.predict(DATA.x)
    assert predicted.shape == (200,) and predicted[0] in probe.classes
    wrong = np.mean([p != t for p, t in zip(predicted, names, strict=True)])
    assert wrong == pytest.approx(probe.train_error) == probe.evaluate(DATA.x, names).error


@pytest.mark.parametrize("l2", [1e-4, 1.0])
def test_a_warm_start_changes_the_cost_and_not_the_answer(l2: float) -> None:
    drifted = Data(DATA.x + 0.05 * HELD.x[np.arange(200) % 100], DATA.y, 3)
    old = fit_probes(DATA.x, DATA.y, l2=l2, tol=1e-6)
    cold = fit_probes(drifted.x, DATA.y, l2=l2, tol=1e-6)["activations"]
    for start in (old, old["activations"]):
        warm = fit_probes(drifted.x, DATA.y, l2=l2, tol=1e-6, warm_start=start)["activations"]
        check(warm, drifted, l2, 1e-6)
        assert abs(warm.objective - cold.objective) <= warm.gap + cold.gap
    same = fit_probes(DATA.x, DATA.y, l2=l2, tol=1e-5, warm_start=old)["activations"]
    assert same.passes < old["activations"].passes


def test_a_bad_warm_start_is_no_worse_than_none() -> None:
    old = fit_probes(DATA.x, DATA.y, l2=0.1)
    wild = ProbeSet({"activations": replace(old["activations"], weights=1e6 * HELD.x[:3])})
    warm = fit_probes(DATA.x, DATA.y, l2=0.1, warm_start=wild)["activations"]
    check(warm, DATA, 0.1)
    assert warm.passes <= old["activations"].passes + 1


def test_a_warm_start_may_lack_rows_of_a_class() -> None:
    some = DATA.y != 2
    old = fit_probes(DATA.x[some], DATA.y[some], l2=0.1, classes=[0, 1, 2])
    check(fit_probes(DATA.x, DATA.y, l2=0.1, warm_start=old)["activations"], DATA, 0.1)


def test_a_warm_start_that_does_not_fit_is_refused_by_layer() -> None:
    old = fit_probes({"fc1": DATA.x}, DATA.y, l2=0.1)
    with pytest.raises(ValueError, match=r"warm_start\['fc1'\].*5 features.*found 6"):
        fit_probes({"fc1": DATA.x[:, :5]}, DATA.y, l2=0.1, warm_start=old)
    with pytest.raises(ValueError, match=r"warm_start\['fc1'\].*classes \(1, 2, 3\).*\(0, 1, 2\)"):
        fit_probes({"fc1": DATA.x}, DATA.y + 1, l2=0.1, warm_start=old)
    with pytest.raises(ValueError, match=r"no layer 'fc2'.*'fc1'"):
        fit_probes({"fc2": DATA.x}, DATA.y, l2=0.1, warm_start=old)


def test_budgets_are_statuses() -> None:
    for option, status in (("max_passes", "MAX_PASSES"), ("max_seconds", "MAX_SECONDS")):
        probe = fit_probes(DATA.x, DATA.y, l2=1e-4, tol=1e-9, **{option: 0.0})["activations"]
        assert probe.status is Status[status]
        assert np.isfinite(probe.gap) and probe.gap > 0


def test_layouts_in_memory_do_not_matter() -> None:
    x = DATA.x
    forms = [np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x[::-1][::-1]]
    forms += [torch.tensor(x), torch.tensor(x.T.copy()).T, torch.tensor(np.repeat(x, 2, 1))[:, ::2]]
    first = parameters(fit_probes(forms[0], DATA.y, l2=1e-2)["activations"])
    for form in forms:
        labels = torch.tensor(DATA.y) if isinstance(form, torch.Tensor) else DATA.y
        probe = fit_probes(form, labels, l2=1e-2)["activations"]
        np.testing.assert_allclose(parameters(probe), first, rtol=1e-6, atol=1e-8)


def test_input_is_not_written_to() -> None:
    x, labels, s = DATA.x.copy(), DATA.y.copy(), np.ones(200)
    for array in (x, labels, s):
        array.flags.writeable = False
    for solver in ("newton-cg", "lbfgs", "adam"):
        fit_probes({"fc1": x}, labels, sample_weight=s, l2=[0.1, 1.0], solver=solver, max_passes=20)
    tensor = torch.tensor(DATA.x.copy())
    before = tensor.clone()
    fit_probes({"fc1": tensor}, torch.tensor(DATA.y), l2="auto")
    assert torch.equal(tensor, before)


def test_a_tie_goes_to_the_first_class_in_every_error(library: ModuleType) -> None:
    x, y = library.asarray(np.ones((40, 3))), np.arange(40) % 4
    probe = fit_probes(x, y, validation=(x, y), l2=[0.1, 1.0])["activations"]
    assert set(probe.predict(x).tolist()) == {0}
    errors = [probe.train_error, probe.validation_error, probe.evaluate(x, y).error]
    assert errors == pytest.approx([0.75] * 3)
    assert [point.train_error for point in probe.path] == pytest.approx([0.75] * 2)
