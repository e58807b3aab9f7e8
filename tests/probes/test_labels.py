"""Labels become class indices, whatever their form, or are refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from convexprobe import Status
from convexprobe.probes.labels import read_labels
from tests.refusals import GOOD, LABELS, Case, N, check_refused, fit, rows


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
    "unhashable labels": (
        lambda: fit(labels=[[int(c)] for c in LABELS]),
        ValueError,
        ["labels: row 0", "[0] (list)", "(n, m) array"],
    ),
    "ragged labels": (
        lambda: fit(labels=[0, [1, 0]] * 20),
        ValueError,
        ["labels: row 1", "[1, 0] (list)"],
    ),
    "one-hot tensors": (
        lambda: fit(labels=list(torch.eye(2)[LABELS])),
        ValueError,
        ["labels: row 0", "(2,)", "argmax"],
    ),
    "None among labels": (
        lambda: fit(labels=[None if i == 7 else "x" for i in range(N)]),
        ValueError,
        ["labels: row 7 has None", "leave out", "classes="],
    ),
    "NA of pandas": (
        lambda: fit(labels=pd.Series([1, 0] * 19 + [pd.NA, 1], dtype="Int64")),
        ValueError,
        ["labels: row 38 has", "leave out"],
    ),
    "not a time": (
        lambda: fit(labels=np.array(["2000-01-01", "NaT"] * 20, dtype="datetime64[D]")),
        ValueError,
        ["labels: row 1 has None", "leave out"],
    ),
    "continuous labels": (
        lambda: fit(labels=rows()[:, 0]),
        ValueError,
        ["labels: row", "whole numbers", "bin"],
    ),
    "an infinite label": (
        lambda: fit(labels=np.where(LABELS, np.inf, 0.0)),
        ValueError,
        ["labels: row 1 has inf", "whole numbers"],
    ),
    "soft labels": (
        lambda: fit(labels=torch.softmax(torch.tensor(rows()), 1)),
        ValueError,
        ["labels['0']: row", "argmax(axis=1)"],
    ),
    "a class a row": (
        lambda: fit(labels=np.arange(N)),
        ValueError,
        ["labels", "two rows a class", "40 classes in 40 rows", "classes="],
    ),
    "objects that tell rows apart": (
        lambda: fit(labels=[object() for _ in LABELS]),
        ValueError,
        ["labels", "40 classes in 40 rows"],
    ),
    "rows to ignore": (
        lambda: fit(labels=np.where(np.arange(N) == 5, -100, LABELS)),
        ValueError,
        ["labels: row 5 has -100", "ignore", "classes="],
    ),
    "rows to ignore, classes given": (
        lambda: fit(labels=np.where(np.arange(N) == 5, -100, LABELS), classes=[0, 1]),
        ValueError,
        ["labels: row 5", "-100", "(0, 1)", "ignore"],
    ),
    "rows to ignore in validation": (
        lambda: fit(validation=(GOOD, [-100, *LABELS[1:]])),
        ValueError,
        ["validation: row 0", "-100", "ignore"],
    ),
    "masked labels": (
        lambda: fit(labels=np.ma.masked_equal(LABELS, 1)),
        TypeError,
        ["labels", "masked array"],
    ),
    "masked concepts": (
        lambda: fit(labels=np.ma.masked_equal(np.stack([LABELS, LABELS], 1), 1)),
        TypeError,
        ["labels", "masked array"],
    ),
    "complex labels": (lambda: fit(labels=1j * LABELS), TypeError, ["labels", "complex128"]),
    "no labels at all": (lambda: fit(labels=None), TypeError, ["labels", "None"]),
    "a string of labels": (lambda: fit(labels="ab" * 20), TypeError, ["labels", "an array or a"]),
    "a sparse matrix": (lambda: fit(labels=csr_array(np.eye(N))), ValueError, ["labels: row 0"]),
    "a frame with a name twice": (
        lambda: fit(labels=pd.DataFrame(np.stack([LABELS, LABELS], 1), columns=["a", "a"])),
        ValueError,
        ["labels", "'a' twice"],
    ),
    "a frame without a label": (
        lambda: fit(labels=pd.DataFrame({"a": LABELS, "b": [None] * len(LABELS)})),
        ValueError,
        ["labels['b']", "expected rows with a label, found none"],
    ),
    "a set of classes": (lambda: fit(classes={0, 1}), TypeError, ["classes", "order"]),
    "classes in a mapping": (lambda: fit(classes={0: "a"}), TypeError, ["classes", "order"]),
    "a word for classes": (lambda: fit(classes="01"), TypeError, ["classes", "'01'"]),
    "a number of classes": (lambda: fit(classes=2), TypeError, ["classes", "2 (int)"]),
    "one given class": (lambda: fit(classes=[0]), ValueError, ["classes", "at least two"]),
    "a matrix of classes": (lambda: fit(classes=np.eye(2)), ValueError, ["classes", "a list"]),
    "a class that is NaN": (lambda: fit(classes=[0, np.nan]), ValueError, ["classes", "nan"]),
    "a class that is a list": (lambda: fit(classes=[0, [1]]), ValueError, ["classes: row 1"]),
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
    "list of tensors without axes": [torch.tensor(int(c)) for c in LABELS],
    "list of tensors of one element": [torch.tensor([int(c)]) for c in LABELS],
    "list of NumPy scalars": list(LABELS),
    "list of arrays without axes": [np.array(c) for c in LABELS],
    "whole floats of a narrow type": torch.tensor(LABELS).bfloat16(),
    "plus and minus one": 2 * LABELS - 1,
    "series": pd.Series(LABELS, index=np.arange(N)[::-1]),
    "nullable series": pd.Series(LABELS, dtype="Int64"),
    "categories": pd.Categorical(np.array(["cat", "dog"])[LABELS]),
    "generator": (int(c) for c in LABELS),
    "dates": np.array(["2000-01-01", "2000-01-02"], dtype="datetime64[D]")[LABELS],
}


@pytest.mark.parametrize("name", LABEL_FORMS)
def test_labels_may_be_any_hashable_classes(name: str) -> None:
    given = LABEL_FORMS[name]
    labels = list(given) if name == "generator" else given
    probe = fit({"fc1": rows()}, iter(labels) if name == "generator" else labels)["fc1"]
    assert len(probe.classes) == 2
    assert probe.status is Status.CERTIFIED
    # Which class comes first differs, the error and the predictions' agreement do not.
    predicted = probe.predict(rows())
    plain = (np.generic, np.ndarray, torch.Tensor)
    truth = [v.item() if isinstance(v, plain) else v for v in labels]
    wrong = np.mean([p != t for p, t in zip(predicted, truth, strict=True)])
    assert wrong == pytest.approx(probe.train_error)
    assert set(predicted.tolist()) <= set(probe.classes)


def test_a_list_of_tensors_is_the_labels_it_holds() -> None:
    listed = fit({"fc1": rows()}, [torch.tensor(int(c)) for c in LABELS])["fc1"]
    plain = fit({"fc1": rows()}, LABELS)["fc1"]
    assert listed.classes == plain.classes == (0, 1)
    np.testing.assert_array_equal(listed.weights, plain.weights)
    assert listed.evaluate(rows(), [torch.tensor([c]) for c in LABELS]) == plain.evaluate(
        rows(), pd.Series(LABELS)
    )


@pytest.mark.parametrize(
    "classes",
    [
        torch.tensor([1, 0]),
        np.array([1.0, 0.0]),
        range(1, -1, -1),
        pd.Index([1, 0]),
        [torch.tensor(1), np.int64(0)],
    ],
)
def test_classes_may_be_any_sequence(classes: Any) -> None:
    assert fit({"fc1": rows()}, classes=classes)["fc1"].classes == (1, 0)
    assert fit({"fc1": rows()}, classes=(c for c in [1, 0]))["fc1"].classes == (1, 0)


def test_what_is_hardly_a_class_is_one_if_it_is_listed() -> None:
    for odd in (-100, 0.5, None):
        labels = [odd if c else 3 for c in LABELS]
        with pytest.raises(ValueError, match=r"labels: row 1 has .*classes="):
            fit({"fc1": rows()}, labels)
        probe = fit({"fc1": rows()}, labels, classes=[3, odd])["fc1"]
        assert probe.classes == (3, odd) and set(probe.predict(rows())) <= {3, odd}


def test_minus_one_beside_other_classes_is_warned_of_and_fitted() -> None:
    labels = np.arange(N) % 4 - 1
    with pytest.warns(UserWarning, match="labels: -1 is fitted as a class beside 0, 1 and 2"):
        probe = fit({"fc1": rows()}, labels)["fc1"]
    assert probe.classes == (-1, 0, 1, 2)
    fit({"fc1": rows()}, labels, classes=[-1, 0, 1, 2])  # no warning: it is meant


def test_a_frame_holds_concepts_by_column() -> None:
    frame = pd.DataFrame({"one": LABELS, "word": np.array(["a", "b"])[LABELS], 3: 1 - LABELS})
    probes = fit({"fc1": rows()}, frame)
    assert list(probes) == ["fc1/one", "fc1/word", "fc1/3"]
    assert probes["fc1/word"].classes == ("a", "b")
    scores = probes.evaluate({"fc1": rows()}, frame)
    assert scores["fc1/one"].error == pytest.approx(probes["fc1/one"].train_error)


ELEMENTS = st.one_of(
    st.integers(-3, 3), st.sampled_from([-100, 0.5, 1.0, float("nan"), float("inf"), None, pd.NA]),
    st.booleans(), st.text(max_size=1), st.binary(max_size=1), st.complex_numbers(max_magnitude=2),
    st.tuples(st.integers(0, 1)), st.lists(st.integers(0, 1), max_size=2),
    st.builds(np.int8, st.integers(0, 2)), st.builds(torch.tensor, st.integers(0, 2)),
    st.builds(np.zeros, st.integers(0, 2)), st.dates(), st.just(pd.NaT),
)  # fmt: skip


@given(
    st.one_of(st.lists(e, max_size=8) for e in (st.integers(0, 2), ELEMENTS, st.one_of(ELEMENTS))),
    st.sampled_from([list, iter, tuple, pd.Series, lambda v: np.fromiter(v, object, len(v))]),
)
@pytest.mark.filterwarnings("ignore:.*-1 is fitted as a class")
def test_any_labels_are_encoded_back_to_themselves_or_refused_by_name(
    items: list[Any], container: Any
) -> None:
    try:
        encoded = read_labels(container(items), len(items), None)
    except (TypeError, ValueError) as error:
        assert str(error).startswith("labels"), error
        return
    (order,), (codes,) = encoded.classes, encoded.codes
    for item, code in zip(items, codes.tolist(), strict=True):
        item = item.item() if isinstance(item, (np.generic, np.ndarray, torch.Tensor)) else item
        assert order[code] == item
