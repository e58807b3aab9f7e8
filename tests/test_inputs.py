"""Bad input is refused at the door, in words: where it is, what was expected, what was found."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from convexprobe import ProbeSet, Status, fit_probes

N, D = 40, 3


def rows(n: int = N, d: int = D, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


LABELS = np.arange(N) % 2
GOOD = {"conv1": rows(), "fc1": rows(seed=1)}


def fit(activations: Any = GOOD, labels: Any = LABELS, **options: Any) -> ProbeSet:
    return fit_probes(activations, labels, **{"l2": 0.1, **options})


def spoiled(row: int, column: int, value: float, dtype: Any = np.float64) -> dict[str, Any]:
    x = rows().astype(dtype)
    x[row, column] = value
    return {"conv1": rows(), "fc1": x}


def weights(row: int, value: float) -> np.ndarray:
    out = np.ones(N)
    out[row] = value
    return out


def with_nan() -> list[float]:
    return [*LABELS[:-1].astype(float).tolist(), float("nan")]


Case = tuple[Callable[[], Any], type[Exception], list[str]]
REFUSED: dict[str, Case] = {
    # activations
    "NaN": (lambda: fit(spoiled(7, 2, np.nan)), ValueError, ["fc1", "finite", "nan", "row 7"]),
    "inf": (lambda: fit(spoiled(0, 1, np.inf)), ValueError, ["fc1", "inf", "row 0", "feature 1"]),
    "-inf": (lambda: fit(spoiled(39, 0, -np.inf)), ValueError, ["fc1", "-inf", "row 39"]),
    "NaN in float32": (
        lambda: fit(spoiled(7, 2, np.nan, np.float32)),
        ValueError,
        ["fc1", "nan", "row 7"],
    ),
    "NaN, auto": (lambda: fit(spoiled(7, 2, np.nan), l2="auto"), ValueError, ["fc1", "row 7"]),
    "inf, auto": (lambda: fit(spoiled(7, 2, np.inf), l2="auto"), ValueError, ["fc1", "row 7"]),
    "NaN in a row of weight 0": (
        lambda: fit(spoiled(7, 2, np.nan), sample_weight=weights(7, 0.0)),
        ValueError,
        ["fc1", "row 7"],
    ),
    "several bad rows": (
        lambda: fit({"fc1": np.where(np.arange(N)[:, None] > 34, np.nan, rows())}),
        ValueError,
        ["fc1", "row 35", "5 bad rows of 40"],
    ),
    "no layers": (lambda: fit({}), ValueError, ["activations", "at least one", "none"]),
    "layers of unequal lengths": (
        lambda: fit({"conv1": rows(), "fc1": rows(39)}),
        ValueError,
        ["fc1", "conv1", "40", "39"],
    ),
    "no rows": (lambda: fit({"fc1": rows(0)}, []), ValueError, ["fc1", "(0, 3)"]),
    "no features": (lambda: fit({"fc1": rows(d=0)}), ValueError, ["fc1", "(40, 0)"]),
    "one axis": (lambda: fit({"fc1": np.zeros(N)}), ValueError, ["fc1", "(rows, feat", "(40,)"]),
    "three axes": (lambda: fit({"fc1": np.zeros((N, 2, 2))}), ValueError, ["fc1", "(40, 2, 2)"]),
    "objects": (lambda: fit({"fc1": rows().astype(object)}), TypeError, ["fc1", "object"]),
    "strings": (lambda: fit({"fc1": rows().astype(str)}), TypeError, ["fc1", "numeric", "<U"]),
    "complex": (lambda: fit({"fc1": rows() + 1j}), TypeError, ["fc1", "real", "complex"]),
    "layer name": (lambda: fit({3: rows()}), TypeError, ["string", "3"]),
    # labels
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
    "far solver": (lambda: fit(solver="zzz"), ValueError, ["zzz", "newton-cg, lbfgs"]),
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
    call, kind, words = REFUSED[case]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_are_found_in_every_library(bad: float, library: ModuleType) -> None:
    x = rows()
    x[11, 2] = bad
    with pytest.raises(ValueError, match=r"'fc1'.*row 11, feature 2"):
        fit({"fc1": library.asarray(x)}, library.asarray(LABELS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bad_values_are_found_in_half_precision(dtype: Any) -> None:
    x = torch.tensor(rows()).to(dtype)
    x[11, 2] = float("inf")
    with pytest.raises(ValueError, match=r"'fc1'.*inf in row 11, feature 2"):
        fit({"fc1": x}, torch.tensor(LABELS))


CONVERTED: dict[str, Callable[[np.ndarray], Any]] = {
    "int64": lambda x: x.astype(np.int64),
    "uint8": lambda x: x.astype(np.uint8),
    "bool": lambda x: x > 2,
    "nested list": lambda x: x.astype(int).tolist(),
    "torch int64": lambda x: torch.tensor(x.astype(np.int64)),
    "torch bool": lambda x: torch.tensor(x > 2),
    "big-endian": lambda x: x.astype(">f4"),
    "gradient": lambda x: torch.tensor(x, dtype=torch.float32, requires_grad=True),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_other_real_activations_are_converted(name: str) -> None:
    x = np.random.default_rng(0).integers(0, 5, size=(N, D)).astype(float)
    given = CONVERTED[name](x)
    plain = (x > 2).astype(np.float32) if "bool" in name else x.astype(np.float32)
    ours, theirs = fit({"fc1": given})["fc1"], fit({"fc1": plain})["fc1"]
    assert str(ours.weights.dtype).endswith("float32")
    assert ours.status is Status.CERTIFIED
    assert ours.objective == pytest.approx(theirs.objective, abs=1e-6)


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
