"""Labels become class indices, whatever their form, or are refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from convexprobe import Status
from tests.refusals import LABELS, Case, N, check_refused, fit, rows


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
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_labels_are_refused_with_the_place_the_expected_and_the_found(case: str) -> None:
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
