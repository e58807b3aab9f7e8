"""Standardized features: what was solved, and weights for the rows as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from convexprobe import Probe, Status, fit_probes, load_probes, remember
from convexprobe.activations.source import Rows
from convexprobe.activations.stored import HostRows
from convexprobe.arrays.backend import to_numpy
from convexprobe.probes.standardize import Standardized
from tests.claims import parameters
from tests.oracle import Data, minimum, random_data, reference

SCALES = 10.0 ** np.arange(-3, 3)
DATA = random_data(200, 6, 3, weighted=True)
X = 5.0 + DATA.x * SCALES
SMALL = random_data(60, 6, 3, seed=8)
HELD = 5.0 + SMALL.x * SCALES


def scaled(x: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardized rows, means and deviations, by NumPy."""
    mean = np.average(x, axis=0, weights=weights)
    deviation = np.average((x - mean) ** 2, axis=0, weights=weights) ** 0.5
    return (x - mean) / deviation, mean, deviation


def check(probe: Probe, x: np.ndarray, y: np.ndarray, weights: Any = None) -> None:
    """The probe is the optimum of the standardized problem, to its gap."""
    rows, mean, deviation = scaled(x, weights)
    data = Data(rows, y, len(probe.classes), weights)
    np.testing.assert_allclose(to_numpy(probe.scale), deviation, rtol=1e-6)
    w = parameters(probe)
    k, d = probe.weights.shape
    original = w[: k * d].reshape(k, d)
    inside = np.concatenate([(original * deviation).ravel(), w[k * d :] + original @ mean])
    value = reference(data, inside, probe.l2)[0]
    assert probe.status is Status.CERTIFIED
    assert probe.objective == pytest.approx(value, abs=2e-6)
    assert probe.loss == pytest.approx(reference(data, inside, 0.0)[0], abs=2e-6)
    assert -1e-6 <= value - minimum(data, probe.l2)[1] <= probe.gap + 1e-6
    assert probe.gap <= 1e-3 * data.label_entropy


@pytest.mark.parametrize("weighted", [False, True])
def test_the_penalty_is_on_standardized_features(weighted: bool, library: ModuleType) -> None:
    weights = DATA.weights if weighted else None
    probe = fit_probes(
        library.asarray(X), DATA.y, l2=0.01, sample_weight=weights, standardize=True
    )["activations"]
    check(probe, X, DATA.y, weights)
    assert type(probe.scale) is type(probe.weights)
    score = probe.evaluate(library.asarray(X), DATA.y, sample_weight=weights)
    assert (score.error, score.loss) == pytest.approx((probe.train_error, probe.loss))


def test_it_is_the_pipeline_of_scikit_learn() -> None:
    probe = fit_probes(X, DATA.y, l2=0.05, tol=1e-9, standardize=True)["activations"]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=probe.C, tol=1e-10, max_iter=999))
    theirs = model.fit(X, DATA.y).predict_proba(X)
    np.testing.assert_allclose(probe.predict_proba(X), theirs, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_rows_are_standardized_in_the_compute_dtype(dtype: Any) -> None:
    x = torch.tensor(X if dtype == torch.float32 else DATA.x * SCALES).to(dtype)
    probe = fit_probes(x, DATA.y, l2=0.01, standardize=True)["activations"]
    assert probe.weights.dtype == torch.float32
    check(probe, x.double().numpy(), DATA.y)
    streamed = fit_probes(
        {"activations": HostRows(x)}, DATA.y, l2=0.01, standardize=True, memory_limit=1e3
    )["activations"]
    check(streamed, x.double().numpy(), DATA.y)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cv": 3, "l2": [0.1, 1e-3]},
        {"validation": (HELD, {"class": SMALL.y, "zero": SMALL.y == 0})},
        {"class_weight": "balanced"},
        {"refit": False},
        {"seed": [0, 1]},
    ],
    ids=["auto", "cv", "validation", "class_weight", "refit", "seeds"],
)
def test_every_way_to_choose_is_that_of_rows_standardized_by_hand(options: Any) -> None:
    rows, mean, deviation = scaled(X, None)
    by_hand = dict(options)
    if "validation" in options:
        by_hand["validation"] = ((HELD - mean) / deviation, options["validation"][1])
    labels = {"class": DATA.y, "zero": DATA.y == 0}
    probes = fit_probes(X, labels, standardize=True, **options)
    for name, other in fit_probes(rows, labels, **by_hand).items():
        probe = probes[name]
        assert probe.l2 == pytest.approx(other.l2)
        assert probe.validation_errors == pytest.approx(other.validation_errors, abs=0.03)
        np.testing.assert_allclose(probe.predict_proba(X), other.predict_proba(rows), atol=0.03)
        assert abs(probe.objective - other.objective) <= probe.gap + other.gap + 1e-9


def test_a_scale_of_the_features_does_not_matter() -> None:
    one, other = (fit_probes(x, DATA.y, standardize=True)["activations"] for x in (X, DATA.x))
    assert one.l2 == pytest.approx(other.l2)
    np.testing.assert_allclose(one.predict_proba(X), other.predict_proba(DATA.x), atol=1e-2)


def test_constant_features_are_shifted_alone() -> None:
    x = np.concatenate([X, np.full((200, 1), 0.1)], axis=1)
    probe = fit_probes(x, DATA.y, l2=0.01, standardize=True)["activations"]
    assert probe.scale is not None and probe.scale[6] == 1.0
    assert abs(probe.weights[:, 6]).max() < 1e-6


def test_an_earlier_probe_starts_a_standardized_fit_where_it_was() -> None:
    first = fit_probes(X, DATA.y, l2=0.01, standardize=True)
    again = fit_probes(X, DATA.y, l2=0.01, standardize=True, warm_start=first)["activations"]
    assert again.start == "copied" and again.passes < first["activations"].passes
    check(again, X, DATA.y)
    memory = remember(first, X)
    later = fit_probes(X + 0.01, DATA.y, l2=0.01, standardize=True, warm_start=memory)
    assert later["activations"].start in ("copied", "transferred")


def test_the_scale_survives_a_file_and_is_told(tmp_path: Path) -> None:
    probes = fit_probes(X, {"a": DATA.y}, l2=0.01, standardize=True)
    probes = probes | fit_probes({"plain": X}, DATA.y, l2=0.01)
    probes.save(tmp_path / "probes")
    loaded = load_probes(tmp_path / "probes")
    np.testing.assert_array_equal(loaded["activations/a"].scale, probes["activations/a"].scale)
    assert loaded["plain"].scale is None
    assert "||W scale||" in str(loaded) and "||W scale||" not in str(fit_probes(X, DATA.y, l2=1.0))
    bad = replace(probes["activations/a"], scale=np.zeros(6))
    with pytest.raises(ValueError, match="expected a positive scale of every feature"):
        (probes | {"bad": bad}).save(tmp_path / "bad")


def test_values_that_cannot_be_standardized_are_named() -> None:
    for value in (np.nan, np.inf):
        x = X.copy()
        x[7, 2] = value
        with pytest.raises(ValueError, match=r"activations\['activations'\].*row 7, feature 2"):
            fit_probes(x, DATA.y, l2=0.1, standardize=True)
    with pytest.raises(ValueError, match="expected finite values below"):
        fit_probes(X * 1e160, DATA.y, l2=0.1, standardize=True)
    with pytest.raises(TypeError, match="standardize: expected True or False"):
        fit_probes(X, DATA.y, standardize="yes")  # type: ignore[arg-type]


def test_standardized_rows_are_a_source_of_rows() -> None:
    rows, mean, deviation = scaled(X, None)
    source = Standardized(Rows(X), mean, deviation)
    np.testing.assert_allclose(source.take(np.array([5, 0])), rows[[5, 0]])
    np.testing.assert_allclose(source.subset(np.array([9])).take(np.array([0])), rows[[9]])
    np.testing.assert_allclose(np.concatenate([x for _, x in source.blocks()]), rows)
    assert [*source.spans(3)] == [span for span, _ in source.blocks(3)]
    while source.halve():
        pass
    assert next(source.spans(3)) == slice(0, 1)
