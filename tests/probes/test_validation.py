"""Validation rows are checked like the rows that are fitted to."""

from __future__ import annotations

import numpy as np
import pytest

from convexprobe.activations.source import Rows
from convexprobe.arrays.ranks import ALONE
from convexprobe.probes.labels import read_labels
from convexprobe.probes.layer import _family
from convexprobe.probes.splits import plan
from convexprobe.probes.validation import validation_loss
from tests.oracle import Data, random_data, reference
from tests.refusals import GOOD, LABELS, Case, check_refused, fit, rows, spoiled

REFUSED: dict[str, Case] = {
    "validation of other concepts": (
        lambda: fit(labels={"a": LABELS}, validation=(GOOD, {"b": LABELS})),
        ValueError,
        ["validation", "'a'", "'b'"],
    ),
    "validation without concepts": (
        lambda: fit(labels={"a": LABELS}, validation=(GOOD, LABELS)),
        ValueError,
        ["validation", "'a'", "None"],
    ),
    "validation without a layer": (
        lambda: fit(validation=({"conv1": rows(), "fc11": rows()}, LABELS)),
        ValueError,
        ["validation", "'fc1'", "nearest", "'fc11'"],
    ),
    "validation of another width": (
        lambda: fit(validation=({"conv1": rows(), "fc1": rows(d=4)}, LABELS)),
        ValueError,
        ["validation['fc1']", "3 features", "4"],
    ),
    "validation with too few labels": (
        lambda: fit(validation=(GOOD, LABELS[:9])),
        ValueError,
        ["validation", "40", "9"],
    ),
    "validation with another class": (
        lambda: fit(validation=(GOOD, LABELS + 1)),
        ValueError,
        ["validation", "row 1", "2"],
    ),
    "validation with NaN": (
        lambda: fit(validation=(spoiled(5, 0, np.nan), LABELS)),
        ValueError,
        ["validation['fc1']", "nan", "row 5"],
    ),
    "too few rows to hold out": (
        lambda: fit({"fc1": rows(8)}, np.arange(8) % 2, l2="auto"),
        ValueError,
        ["validation", "5"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_validation_rows_are_refused_with_the_place_the_expected_and_the_found(
    case: str,
) -> None:
    check_refused(REFUSED[case])


@pytest.mark.parametrize("concepts", [1, 2])
def test_early_stopping_counts_held_out_rows_by_their_weights(concepts: int) -> None:
    data = random_data(120, 4, 3, weighted=True)
    assert data.weights is not None
    labels = {f"c{i}": np.roll(data.y, i) for i in range(concepts)}
    encoded = read_labels(labels, 120, None)
    weights = [data.weights] * concepts
    splits = plan(encoded, weights, [0], folds=None, hold=True)
    problem = _family(Rows(data.x), encoded, splits, ALONE, bias=True)
    loss = validation_loss(problem, splits, weights, None)
    w = np.random.default_rng(0).standard_normal((concepts, problem.p))
    for task, (y, split) in enumerate(zip(labels.values(), splits, strict=True)):
        s = data.weights[split.held]
        held = Data(data.x[split.held], y[split.held], 3, s)
        assert loss(w)[task] == pytest.approx(reference(held, w[task], 0.0)[0])
