"""Weights of classes are weights of rows, as scikit-learn has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight

from convexprobe import fit_probes
from tests.claims import check, parameters, untimed
from tests.oracle import Data, random_data
from tests.refusals import Case, check_refused, fit

DATA = random_data(300, 5, 3, weighted=True, skew=1.5)
assert DATA.weights is not None
COUNTS = np.random.default_rng(0).integers(0, 3, 300)
CHOICES: list[Any] = ["balanced", {0: 2.0, 2: 0.5}, {1: 0.0}]


@pytest.mark.parametrize("class_weight", CHOICES)
def test_the_rows_have_the_weights_that_scikit_learn_gives_them(class_weight: Any) -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=0.01, class_weight=class_weight)["activations"]
    rows = compute_sample_weight(class_weight, DATA.y)
    check(probe, Data(DATA.x, DATA.y, 3, rows))
    told = fit_probes(DATA.x, DATA.y, l2=0.01, sample_weight=rows)["activations"]
    np.testing.assert_array_equal(parameters(probe), parameters(told))


def test_a_balanced_probe_is_that_of_scikit_learn() -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=0.05, tol=1e-9, class_weight="balanced")["activations"]
    model = LogisticRegression(C=probe.C, class_weight="balanced", tol=1e-10, max_iter=1000)
    theirs = model.fit(DATA.x, DATA.y).predict_proba(DATA.x)
    np.testing.assert_allclose(probe.predict_proba(DATA.x), theirs, atol=1e-3)
    assert probe.label_entropy == pytest.approx(np.log(3))


def test_a_row_of_weight_two_is_a_repeated_row_when_classes_are_balanced() -> None:
    rows = np.repeat(np.arange(300), COUNTS)
    weighted = fit_probes(
        DATA.x, DATA.y, l2=0.1, tol=1e-9, sample_weight=COUNTS, class_weight="balanced"
    )["activations"]
    repeated = fit_probes(DATA.x[rows], DATA.y[rows], l2=0.1, tol=1e-9, class_weight="balanced")
    np.testing.assert_allclose(
        weighted.predict_proba(DATA.x), repeated["activations"].predict_proba(DATA.x), atol=1e-3
    )


@pytest.mark.parametrize("options", [{}, {"cv": 3}, {"stopping": "validation"}])
def test_each_concept_is_balanced_on_its_own(options: dict[str, Any]) -> None:
    labels = {"digit": DATA.y, "two": np.where(DATA.y == 2, "yes", "no")}
    both = fit_probes(DATA.x, labels, l2=[1e-3, 1e-1], class_weight="balanced", **options)
    for name, y in labels.items():
        rows = compute_sample_weight("balanced", y)
        alone = fit_probes(DATA.x, y, l2=[1e-3, 1e-1], sample_weight=rows, **options)
        probe = both[f"activations/{name}"]
        if not options:
            check(probe, Data(DATA.x, np.unique(y, return_inverse=True)[1], len(set(y)), rows))
        for ours, theirs in zip(probe.path, alone["activations"].path, strict=True):
            assert ours.validation_error == pytest.approx(theirs.validation_error, abs=0.02)
            assert ours.label_entropy == pytest.approx(theirs.label_entropy, rel=1e-6)


def test_held_out_rows_are_scored_by_the_weights_of_their_classes() -> None:
    rows = compute_sample_weight("balanced", DATA.y)
    ours = fit_probes(DATA.x, DATA.y, class_weight="balanced")["activations"]
    told = fit_probes(DATA.x, DATA.y, sample_weight=rows)["activations"]
    for a, b in zip(untimed(ours.path), untimed(told.path), strict=False):
        assert a.validation_loss == pytest.approx(b.validation_loss, rel=0.02)


CASES: dict[str, Case] = {
    "another word": (
        lambda: fit(class_weight="even"),
        TypeError,
        ["class_weight: expected None", "'even'"],
    ),
    "a list": (lambda: fit(class_weight=[1, 2]), TypeError, ["class_weight: expected None"]),
    "no class": (
        lambda: fit(class_weight={"a": 1.0}),
        ValueError,
        ["class_weight: 'a' is no class of the labels", "(0, 1)"],
    ),
    "negative": (
        lambda: fit(class_weight={0: -1.0}),
        ValueError,
        ["class_weight[0]: expected 0 or a number from", "-1"],
    ),
    "not a number": (lambda: fit(class_weight={0: "1"}), TypeError, ["class_weight[0]"]),
    "all classes without weight": (
        lambda: fit(class_weight={0: 0.0, 1: 0.0}),
        ValueError,
        ["labels: expected at least two classes, found 0"],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_class_weights_that_cannot_be_used_are_refused(case: Case) -> None:
    check_refused(case)
