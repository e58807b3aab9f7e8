"""Every measure is scikit-learn's, on rows weighted, repeated or drawn again in groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from convexprobe.metrics.measures import BINS, Measures, bootstrap
from convexprobe.metrics.predictions import Predictions, joined, predictions


def random_rows(
    seed: int, n: int = 120, k: int = 3, *, ties: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Logits `(n, k)` and classes that they tell something about; `ties` rounds the logits."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    y[:k] = np.arange(k)
    z = rng.standard_normal((n, k)) + 0.8 * np.eye(k)[y]
    return (np.round(z) if ties else z), y


def by_scikit_learn(z: np.ndarray, y: np.ndarray, s: np.ndarray | None) -> dict[str, float]:
    """The measures of logits `(n, k)`, by scikit-learn's functions alone."""
    k = z.shape[1]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    guess = z.argmax(axis=1)
    rank, rates, areas = predictions(z, y, None, rank=True).ranking, [], []
    assert rank is not None
    for c in range(1, 2) if k == 2 else range(k):  # by the ranking, whose ties rounding may break
        fpr, tpr, _ = metrics.roc_curve(
            y == c, rank[:, c], sample_weight=s, drop_intermediate=False
        )
        rates.append(tpr[fpr <= 0.01].max())
        areas.append(metrics.roc_auc_score(y == c, rank[:, c], sample_weight=s))
    if len(np.unique(z)) == z.size:
        score = p[:, 1] if k == 2 else p
        whole = metrics.roc_auc_score(y, score, multi_class="ovr", sample_weight=s)
        assert whole == pytest.approx(np.mean(areas))
    average = "binary" if k == 2 else "macro"
    return {
        "error": 1 - metrics.accuracy_score(y, guess, sample_weight=s),
        "loss": metrics.log_loss(y, p, sample_weight=s),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, guess, sample_weight=s),
        "f1": metrics.f1_score(y, guess, average=average, sample_weight=s),
        "auroc": float(np.mean(areas)),
        "recall_at_1pct_fpr": float(np.mean(rates)),
    }


def measured(
    z: np.ndarray, y: np.ndarray, s: np.ndarray | None = None, **options: Any
) -> dict[str, float]:
    measures = Measures(predictions(z, y, s, rank=True), **options)
    return {name: float(v[0]) for name, v in measures(np.ones((measures.groups, 1))).items()}


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_measures_are_those_of_scikit_learn(k: int, ties: bool, weighted: bool) -> None:
    for seed in range(5):
        z, y = random_rows(seed, 300, k, ties=ties)
        s = np.random.default_rng(seed).exponential(size=300) if weighted else None
        ours, theirs = measured(z, y, s), by_scikit_learn(z, y, s)
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
        if k == 7 and not ties:
            top = metrics.top_k_accuracy_score(y, z, k=5, sample_weight=s)
            assert ours["top5_accuracy"] == pytest.approx(top)


@pytest.mark.parametrize("k", [2, 4])
def test_a_bootstrap_sample_is_scikit_learn_on_the_rows_drawn(k: int) -> None:
    z, y = random_rows(1, 200, k, ties=True)
    groups = np.random.default_rng(3).integers(0, 40, 200)
    samples = bootstrap(
        Measures(predictions(z, y, None, rank=True), groups), 70, np.random.default_rng(7)
    )
    rng = np.random.default_rng(7)
    for b in range(70):
        drawn = rng.integers(0, 40, 40)
        rows = np.concatenate([np.flatnonzero(groups == g) for g in drawn])
        for name, value in by_scikit_learn(z[rows], y[rows], None).items():
            assert samples[name][b] == pytest.approx(value, rel=1e-9, abs=1e-12), (name, b)


def test_the_calibration_error_is_that_of_its_definition() -> None:
    z, y = random_rows(0, 500, 3)
    s = np.random.default_rng(0).random(500)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    error = 0.0
    for b in range(BINS):
        own = (confidence > b / BINS) & (confidence <= (b + 1) / BINS)
        if own.any():
            accuracy, mean = (np.average(v[own], weights=s[own]) for v in (right, confidence))
            error += s[own].sum() / s.sum() * abs(accuracy - mean)
    assert measured(z, y, s)["calibration_error"] == pytest.approx(error)


@given(st.integers(0, 10_000), st.integers(2, 5), st.booleans())
def test_measures_are_within_their_range_and_do_not_depend_on_the_order_of_rows(
    seed: int, k: int, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    z, y = 20 * rng.standard_normal((n, k)), rng.integers(0, k, n)
    z = np.round(z / 20) if ties else z
    s = rng.integers(0, 2, n) * 1.0
    s[0] = 1.0
    ours, order = measured(z, y, s), rng.permutation(n)
    again = measured(z[order], y[order], s[order])
    for name, value in ours.items():
        assert again[name] == pytest.approx(value, nan_ok=True, rel=1e-9, abs=1e-12), name
        if name not in ("loss", "usable_information", "label_entropy"):
            assert np.isnan(value) or -1e-12 <= value <= 1 + 1e-12, name


def test_what_rows_do_not_define_is_not_a_number_and_never_a_warning() -> None:
    z, _ = random_rows(0, 20, 2)
    one = measured(z, np.zeros(20, dtype=int))
    assert np.isnan([one["auroc"], one["recall_at_1pct_fpr"]]).all()
    assert 0 <= one["balanced_accuracy"] <= 1
    sure = np.array([[50.0, 0.0], [60.0, 0.0], [0.0, 50.0]])  # probabilities that are all 1
    assert measured(sure, np.array([0, 1, 1]))["auroc"] == 0.5


def test_a_class_of_probability_zero_has_an_infinite_loss_in_the_samples_that_have_its_rows() -> (
    None
):
    z, y = random_rows(0, 50, 3)
    z[:, 2] = -np.inf
    rows = predictions(z, y, None, rank=True)
    samples = bootstrap(Measures(rows, np.arange(50)), 200, np.random.default_rng(0))
    assert np.isinf(samples["loss"]).any()
    only = Measures(predictions(z[y < 2], y[y < 2], None, rank=True))
    assert np.isfinite(bootstrap(only, 20, np.random.default_rng(0))["loss"]).all()


def test_blocks_of_rows_are_joined_in_their_order() -> None:
    z, y = random_rows(0, 30, 3)
    whole = predictions(z, y, None, rank=True)
    parts = joined(
        predictions(z[i : i + 7], y[i : i + 7], None, rank=True) for i in range(0, 30, 7)
    )
    assert isinstance(parts, Predictions) and parts.columns().keys() == whole.columns().keys()
    for name, column in whole.columns().items():
        np.testing.assert_array_equal(parts.columns()[name], column)


def test_without_the_logits_of_all_rows_there_is_no_ranking() -> None:
    z, y = random_rows(0, 30, 3)
    measures = Measures(predictions(z, y, None, rank=False))
    assert "auroc" not in measures(np.ones((30, 1)))
