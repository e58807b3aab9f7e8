"""Bad labels, weights and options are refused at the door: what was expected, what was found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from convexprobe import Status
from tests.refusals import GOOD, LABELS, Case, N, check_refused, fit, rows, spoiled, weights


def with_nan() -> list[float]:
    return [*LABELS[:-1].astype(float).tolist(), float("nan")]


REFUSED: dict[str, Case] = {
    "too few labels": (lambda: fit(labels=LABELS[:39]), ValueError, ["labels", "40", "39"]),
    "three axes of labels": (lambda: fit(labels=np.zeros((N, 2, 2))), ValueError, ["(40, 2, 2)"]),
    "too few rows of labels": (
        lambda: fit(labels=np.eye(2)[LABELS[:39]]),
        ValueError,
        ["labels['0']", "40", "39"],
    ),
    "no concepts": (lambda: fit(labels={}), ValueError, ["labels", "at least one concept"]),
    "no columns": (lambda: fit(labels=np.zeros((N, 0))), ValueError, ["at least one concept"]),
    "concept name": (lambda: fit(labels={3: LABELS}), TypeError, ["string", "3"]),
    "a concept of one class": (
        lambda: fit(labels={"a": LABELS, "b": 0 * LABELS}),
        ValueError,
        ["labels['b']", "two classes", "1"],
    ),
    "a column of one class": (
        lambda: fit(labels=np.stack([LABELS, 0 * LABELS], axis=1)),
        ValueError,
        ["labels['1']", "two classes", "1"],
    ),
    "a concept of other rows": (
        lambda: fit(labels={"a": LABELS, "b": LABELS[:7]}),
        ValueError,
        ["labels['b']", "40", "7"],
    ),
    "NaN in a concept": (
        lambda: fit(labels={"a": LABELS, "b": with_nan()}),
        ValueError,
        ["labels['b']", "NaN", "39"],
    ),
    "one name twice": (
        lambda: fit({"a": rows(), "a/b": rows()}, {"b/c": LABELS, "c": LABELS}),
        ValueError,
        ["same name", "a/b/c"],
    ),
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
    # folds
    "cv and validation": (
        lambda: fit(cv=5, validation=(GOOD, LABELS)),
        ValueError,
        ["cv", "validation="],
    ),
    "cv and early stopping": (
        lambda: fit(cv=5, stopping="validation"),
        ValueError,
        ["cv", "stopping="],
    ),
    "stopping": (lambda: fit(stopping="early"), ValueError, ["stopping", "'early'"]),
    "one fold": (lambda: fit(cv=1), ValueError, ["cv", "at least 2", "1"]),
    "folds in words": (lambda: fit(cv="five"), ValueError, ["cv", "five"]),
    "more folds than rows": (lambda: fit(cv=41), ValueError, ["cv=41", "[20, 20]"]),
    "a class of one row": (
        lambda: fit(labels=np.arange(N) == 0, cv=3),
        ValueError,
        ["cv=3", "[39, 1]"],
    ),
    "one class": (lambda: fit(labels=np.zeros(N)), ValueError, ["two classes", "1"]),
    "one class of positive weight": (
        lambda: fit(sample_weight=LABELS.astype(float)),
        ValueError,
        ["two classes", "1"],
    ),
    "NaN labels": (lambda: fit(labels=np.array(with_nan())), ValueError, ["labels", "NaN", "39"]),
    "NaN labels, list": (lambda: fit(labels=with_nan()), ValueError, ["labels", "NaN", "row 39"]),
    "NaN labels, mixed list": (
        lambda: fit(labels=[*LABELS[:-1].tolist(), float("nan")]),
        ValueError,
        ["labels", "NaN", "row 39"],
    ),
    "NaN labels, objects": (
        lambda: fit(labels=np.array(["a", "b"] * 19 + ["a", np.nan], dtype=object)),
        ValueError,
        ["labels", "NaN", "row 39"],
    ),
    "unknown class": (lambda: fit(classes=[0, 2]), ValueError, ["row 1", "1", "(0, 2)"]),
    "repeated classes": (lambda: fit(classes=[0, 1, 1]), ValueError, ["classes", "distinct"]),
    "unhashable labels": (lambda: fit(labels=[[c] for c in LABELS]), ValueError, ["labels"]),
    # weights
    "negative weight": (lambda: fit(sample_weight=weights(4, -1.0)), ValueError, ["-1", "row 4"]),
    "NaN weight": (lambda: fit(sample_weight=weights(4, np.nan)), ValueError, ["nan", "row 4"]),
    "inf weight": (lambda: fit(sample_weight=weights(4, np.inf)), ValueError, ["inf", "row 4"]),
    "too few weights": (lambda: fit(sample_weight=np.ones(39)), ValueError, ["(40,)", "(39,)"]),
    "no weight": (lambda: fit(sample_weight=np.zeros(N)), ValueError, ["positive weight"]),
    # options
    "solver": (lambda: fit(solver="newton_cg"), ValueError, ["newton_cg", "'newton-cg'", "adam"]),
    "far solver": (lambda: fit(solver="zzz"), ValueError, ["zzz", "newton-cholesky, lbfgs"]),
    "negative l2": (lambda: fit(l2=-1e-3), ValueError, ["l2", "at least 0", "-0.001"]),
    "negative l2 in a path": (lambda: fit(l2=[1.0, -1.0]), ValueError, ["l2", "-1"]),
    "NaN l2": (lambda: fit(l2=np.nan), ValueError, ["l2", "finite", "nan"]),
    "inf l2": (lambda: fit(l2=np.inf), ValueError, ["l2", "finite", "inf"]),
    "no l2": (lambda: fit(l2=[]), ValueError, ["l2", "non-empty"]),
    "word l2": (lambda: fit(l2="best"), ValueError, ["l2", '"auto"', "'best'"]),
    "tol 0": (lambda: fit(tol=0), ValueError, ["tol", "positive", "0"]),
    "negative tol": (lambda: fit(tol=-1e-3), ValueError, ["tol", "-0.001"]),
    "NaN tol": (lambda: fit(tol=np.nan), ValueError, ["tol", "nan"]),
    # validation
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
def test_refused_with_the_place_the_expected_and_the_found(case: str) -> None:
    check_refused(REFUSED[case])


LABEL_FORMS: dict[str, Any] = {
    "list": LABELS.tolist(),
    "torch": torch.tensor(LABELS),
    "uint8": LABELS.astype(np.uint8),
    "float": LABELS.astype(float),
    "bool": LABELS.astype(bool),
    "strings": np.array(["cat", "dog"])[LABELS],
    "list of strings": np.array(["cat", "dog"])[LABELS].tolist(),
    "objects": np.array(["cat", "dog"], dtype=object)[LABELS],
    "tuples": [("a", int(c)) for c in LABELS],
    "mixed types": ["none" if c else 1 for c in LABELS],
    "numpy and Python integers": [int(c) if i % 3 else np.int64(c) for i, c in enumerate(LABELS)],
    "None": [None if c else "x" for c in LABELS],
}


@pytest.mark.parametrize("name", LABEL_FORMS)
def test_labels_may_be_any_hashable_classes(name: str) -> None:
    labels = LABEL_FORMS[name]
    probe = fit({"fc1": rows()}, labels)["fc1"]
    assert len(probe.classes) == 2
    assert probe.status is Status.CERTIFIED
    # Which class comes first differs, the error and the predictions' agreement do not.
    predicted = probe.predict(rows())
    truth = [v.item() if isinstance(v, (np.generic, torch.Tensor)) else v for v in labels]
    wrong = np.mean([p != t for p, t in zip(predicted, truth, strict=True)])
    assert wrong == pytest.approx(probe.train_error)
    assert set(predicted.tolist()) <= set(probe.classes)


def test_input_is_not_written_to() -> None:
    x, labels, s = rows(), LABELS.copy(), np.ones(N)
    for array in (x, labels, s):
        array.flags.writeable = False
    for solver in ("newton-cg", "lbfgs", "adam"):
        fit({"fc1": x}, labels, sample_weight=s, l2=[0.1, 1.0], solver=solver, max_passes=20)
    tensor = torch.tensor(rows())
    before = tensor.clone()
    fit({"fc1": tensor}, torch.tensor(LABELS), l2="auto")
    assert torch.equal(tensor, before)
