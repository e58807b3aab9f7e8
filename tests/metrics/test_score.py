"""A score is what its definition says, on predictions that are written out."""

from __future__ import annotations

import numpy as np
import pytest

from convexprobe.metrics.score import score, tally

PROBABILITY = np.array([[0.5, 0.25, 0.25], [0.75, 0.125, 0.125], [0.25, 0.5, 0.25]])


def test_a_score_counts_errors_and_averages_losses_over_the_rows() -> None:
    result = score(tally(np.log(PROBABILITY), np.array([0, 1, 1])))
    assert result.rows == 3 and result.error == pytest.approx(1 / 3)
    assert result.bits == pytest.approx((1 + 3 + 1) / 3)  # -log2 of 1/2, 1/8 and 1/2
    assert result.loss == pytest.approx(result.bits * np.log(2))
    entropy = -(np.log2(1 / 3) + 2 * np.log2(2 / 3)) / 3
    assert result.label_entropy == pytest.approx(entropy * np.log(2))
    assert result.usable_information == pytest.approx(entropy - 5 / 3)


def test_no_rows_have_no_score() -> None:
    with pytest.raises(ValueError, match="at least one row to score, found none"):
        score(tally(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)))


def test_a_row_of_weight_two_is_a_repeated_row_and_one_of_weight_zero_is_none() -> None:
    logits, truth = np.log(PROBABILITY), np.array([0, 1, 1])
    counts = np.array([2.0, 0.0, 3.0])
    rows = np.repeat(np.arange(3), counts.astype(int))
    assert score(tally(logits, truth, counts)) == score(tally(logits[rows], truth[rows]))
    logits[1, 1] = -np.inf  # an infinite loss that does not count
    assert np.isfinite(score(tally(logits, truth, counts)).loss)


def test_of_equal_logits_the_first_class_is_predicted() -> None:
    logits = np.array([[1e-9, 0.0, 1e-9]] * 3)  # probabilities that differ less than they round
    assert score(tally(logits, np.array([0, 1, 2]))).error == pytest.approx(2 / 3)
    assert score(tally(logits[:, ::-1][:, 1:], np.array([1, 1, 0]))).error == pytest.approx(1 / 3)
