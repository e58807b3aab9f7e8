"""A score is what its definition says, on predictions that are written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convexprobe.metrics.predictions import predictions
from convexprobe.metrics.score import Score, score, tally

PROBABILITY = np.array([[0.5, 0.25, 0.25], [0.75, 0.125, 0.125], [0.25, 0.5, 0.25]])


def scored(logits: np.ndarray, truth: Any, weights: Any = None, **options: Any) -> Score:
    given = None if weights is None else np.asarray(weights, dtype=float)
    return score(predictions(logits, np.asarray(truth), given, rank=True), **options)


def test_a_score_counts_errors_and_averages_losses_over_the_rows() -> None:
    result = scored(np.log(PROBABILITY), [0, 1, 1])
    assert result.rows == 3 and result.error == pytest.approx(1 / 3)
    assert result.bits == pytest.approx((1 + 3 + 1) / 3)  # -log2 of 1/2, 1/8 and 1/2
    assert result.loss == pytest.approx(result.bits * np.log(2))
    entropy = -(np.log2(1 / 3) + 2 * np.log2(2 / 3)) / 3
    assert result.label_entropy == pytest.approx(entropy * np.log(2))
    assert result.usable_information == pytest.approx(entropy - 5 / 3)
    np.testing.assert_array_equal(result.confusion, [[1, 0, 0], [1, 1, 0], [0, 0, 0]])


def test_a_score_and_a_tally_say_the_same() -> None:
    rng = np.random.default_rng(0)
    logits, truth, weights = rng.standard_normal((99, 4)), rng.integers(0, 4, 99), rng.random(99)
    wrong, loss, *counts = tally(logits.T, truth, weights)
    result = scored(logits, truth, weights)
    assert result.error == pytest.approx(wrong / sum(counts), rel=1e-12)
    assert result.loss == pytest.approx(loss / sum(counts), rel=1e-12)


def test_no_rows_have_no_score() -> None:
    with pytest.raises(ValueError, match="at least one row to score, found none"):
        scored(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    with pytest.raises(ValueError, match="at least one row to score, found none"):
        scored(np.zeros((1, 3)), [0], [0.0])


def test_a_row_of_weight_two_is_a_repeated_row_and_one_of_weight_zero_is_none() -> None:
    logits, truth = np.log(PROBABILITY), np.array([0, 1, 1])
    counts = np.array([2.0, 0.0, 3.0])
    rows = np.repeat(np.arange(3), counts.astype(int))
    logits[1, 1] = -np.inf  # an infinite loss that does not count
    weighted, repeated = scored(logits, truth, counts), scored(logits[rows], truth[rows])
    for name, value in repeated.to_row().items():
        assert weighted.to_row()[name] == pytest.approx(value, nan_ok=True)
    assert np.isfinite(weighted.loss)
    assert scored(logits, truth).loss == np.inf
    assert scored(logits, truth).usable_information == -np.inf


def test_of_equal_logits_the_first_class_is_predicted() -> None:
    logits = np.array([[1e-9, 0.0, 1e-9]] * 3)  # probabilities that differ less than they round
    assert scored(logits, [0, 1, 2]).error == pytest.approx(2 / 3)
    assert scored(logits[:, ::-1][:, 1:], [1, 1, 0]).error == pytest.approx(1 / 3)
    assert scored(np.zeros((6, 6)), np.arange(6)).top5_accuracy == pytest.approx(5 / 6)


def test_a_score_prints_every_measure_and_its_interval() -> None:
    plain = scored(np.log(PROBABILITY), [0, 1, 1])
    assert "error                33.33%" in str(plain) and " to " not in str(plain)
    assert "auroc" in repr(plain)
    drawn = scored(np.log(PROBABILITY), [0, 1, 1], samples=50)
    assert "error                33.33%  0.00% to 66.67%" in str(drawn)
    assert drawn.to_row()["error_high"] == drawn.interval("error")[1] == pytest.approx(2 / 3)
    assert "-0.0000" not in str(drawn)


def test_an_interval_needs_samples_a_measure_and_a_level() -> None:
    plain, drawn = (scored(np.log(PROBABILITY), [0, 1, 1], samples=s) for s in (0, 9))
    with pytest.raises(ValueError, match="interval: expected bootstrap samples, found none"):
        plain.interval("error")
    with pytest.raises(ValueError, match=r"measure: expected one of .*did you mean 'error'"):
        drawn.interval("eror")
    for level in (0.0, 1.0, 2):
        with pytest.raises(ValueError, match="level: expected a number"):
            drawn.interval("error", level)
