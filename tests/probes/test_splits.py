"""Cross-validation: its folds, and that it is what it is by hand."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from convexprobe import fit_probes
from convexprobe.probes.splits import assign_folds, hold_out
from tests.claims import check
from tests.oracle import Data, random_data
from tests.refusals import N, fit

DATA = random_data(200, 6, 3)
PATH = [1e-3, 1.0, 1e-1, 1e-4, 10.0, 1e-2]
"""Six values in no order: more than are solved together."""


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_validation_is_what_it_is_by_hand(weighted: bool, library: ModuleType) -> None:
    weights = np.random.default_rng(1).integers(0, 3, 200) * 1.0 if weighted else None
    x = library.asarray(DATA.x)
    probe = fit_probes(
        x, DATA.y, l2=PATH, cv=4, seed=5, tol=1e-6, sample_weight=weights
    )["activations"]  # fmt: skip
    fold = assign_folds(DATA.y, weights, 4, 5)
    errors, losses = np.zeros((4, len(PATH))), np.zeros((4, len(PATH)))
    for f in range(4):
        fitted, scored = (fold != f) & (fold >= 0), fold == f
        kept = None if weights is None else weights[fitted]
        for v, l2 in enumerate(PATH):
            part = fit_probes(DATA.x[fitted], DATA.y[fitted], l2=l2, tol=1e-6, sample_weight=kept)
            counted = None if weights is None else weights[scored]
            score = part["activations"].evaluate(
                DATA.x[scored], DATA.y[scored], sample_weight=counted
            )
            errors[f, v], losses[f, v] = score.error, score.loss
    assert [p.l2 for p in probe.path] == PATH
    got = [(p.validation_error, p.validation_loss) for p in probe.path]
    # Two points within tol may differ in a row that is nearly undecided.
    np.testing.assert_allclose([e for e, _ in got], errors.mean(axis=0), atol=0.01)
    np.testing.assert_allclose([loss for _, loss in got], losses.mean(axis=0), rtol=0.02)
    best = min(range(len(PATH)), key=lambda v: got[v])
    assert probe.l2 == PATH[best] and probe.validation_error == got[best][0]
    check(probe, Data(DATA.x, DATA.y, 3, weights), 1e-6)  # of all rows
    assert probe.rows == (200 if weights is None else weights.sum())


def test_cross_validation_of_one_penalty_and_of_concepts() -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=0.1, cv=5)["activations"]
    assert probe.path == () and probe.validation_error is not None
    assert abs(probe.validation_error - probe.train_error) < 0.2
    labels = {"digit": DATA.y, "one": (DATA.y == 1).astype(int)}
    probes = fit_probes(DATA.x, labels, l2=PATH, cv=3, tol=1e-6)
    for name, y in labels.items():
        alone = fit_probes(DATA.x, y, l2=PATH, cv=3, tol=1e-6)["activations"]
        both = probes[f"activations/{name}"]
        assert both.validation_error == pytest.approx(alone.validation_error, abs=0.011)
        assert (both.l2, both.rows) == (alone.l2, 200)
        check(both, Data(DATA.x, y, len(both.classes)), 1e-6)


def test_folds_are_stratified_disjoint_and_seeded() -> None:
    weights = (np.arange(200) % 10 > 0).astype(float)
    fold = assign_folds(DATA.y, weights, 5, 0)
    assert (fold == -1).sum() == 20 and set(fold[weights > 0]) == set(range(5))
    for c in range(3):
        sizes = np.bincount(fold[(DATA.y == c) & (weights > 0)], minlength=5)
        assert sizes.max() - sizes.min() <= 1
    sizes = np.bincount(fold[fold >= 0])
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(fold, assign_folds(DATA.y, weights, 5, 0))
    assert (fold != assign_folds(DATA.y, weights, 5, 1)).any()
    assert not (hold_out(DATA.y, weights, 0) & (weights == 0)).any()


@pytest.mark.parametrize(
    ("labels", "folds", "found"),
    [(np.arange(N) % 2, 41, "20, 20"), (np.arange(N) == 0, 3, "39, 1")],
)
def test_folds_that_would_leave_one_class_are_refused(
    labels: np.ndarray, folds: int, found: str
) -> None:
    with pytest.raises(ValueError, match=rf"labels: cv={folds} needs.*\[{found}\]"):
        fit(labels=labels, cv=folds)
