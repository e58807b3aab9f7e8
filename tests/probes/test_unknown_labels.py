"""A concept may not know the label of every row: those rows are left out of it, and of it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import convexprobe as cxp

RNG = np.random.default_rng(0)
X = RNG.standard_normal((120, 6))
SIDE = (X[:, 0] + 0.8 * RNG.standard_normal(120) > 0).astype(np.int64)
KIND = np.array(["a", "b", "c"])[np.digitize(X[:, 1] + RNG.standard_normal(120), [-0.5, 0.5])]
KNOWN = RNG.random(120) < 0.6
MARKED: dict[str, Any] = {
    "minus a hundred": np.where(KNOWN, SIDE, -100),
    "not a number": np.where(KNOWN, SIDE, np.nan),
    "none": [int(y) if k else None for y, k in zip(SIDE, KNOWN, strict=True)],
    "strings": [str(y) if k else None for y, k in zip(SIDE, KNOWN, strict=True)],
    "torch": torch.tensor(np.where(KNOWN, SIDE, -100)),
    "pandas": pd.array([int(y) if k else pd.NA for y, k in zip(SIDE, KNOWN, strict=True)], "Int64"),
}


@pytest.mark.parametrize("name", MARKED)
def test_a_concept_is_fitted_to_the_rows_that_it_knows(name: str) -> None:
    probes = cxp.fit_probes({"x": X}, {"side": MARKED[name], "kind": KIND}, l2=1e-2, tol=1e-7)
    alone = cxp.fit_probes({"x": X[KNOWN]}, SIDE[KNOWN], l2=1e-2, tol=1e-7)["x"]
    probe = probes["x/side"]
    np.testing.assert_allclose(probe.weights, alone.weights, atol=1e-4)
    assert probe.rows == KNOWN.sum() and probe.loss == pytest.approx(alone.loss, abs=1e-6)
    assert probe.train_error == pytest.approx(alone.train_error)
    whole = cxp.fit_probes({"x": X}, KIND, l2=1e-2, tol=1e-7)["x"]
    assert probes["x/kind"].rows == 120
    assert probes["x/kind"].loss == pytest.approx(whole.loss, abs=1e-6)


def test_scores_count_the_rows_that_a_concept_knows() -> None:
    labels = {"side": MARKED["minus a hundred"], "kind": KIND}
    probes = cxp.fit_probes({"x": X}, labels, l2=1e-2)
    scores = probes.evaluate({"x": X}, labels, bootstrap=20)
    alone = probes["x/side"].evaluate(X[KNOWN], SIDE[KNOWN])
    for measure in ("error", "loss", "auroc", "rows", "calibration_error"):
        assert getattr(scores["x/side"], measure) == pytest.approx(getattr(alone, measure))
    np.testing.assert_array_equal(scores["x/side"].confusion, alone.confusion)
    weights = RNG.random(120)
    weighted = probes.evaluate({"x": X}, labels, sample_weight=weights)["x/side"]
    expected = probes["x/side"].evaluate(X[KNOWN], SIDE[KNOWN], sample_weight=weights[KNOWN])
    assert weighted.loss == pytest.approx(expected.loss)
    nothing = {"side": np.full(120, -100)}
    with pytest.raises(ValueError, match=r"labels\['side'\]: expected at least one row to score"):
        probes.evaluate({"x": X}, nothing)


@pytest.mark.parametrize(
    "settings",
    [{}, {"cv": 3}, {"seed": [0, 1]}, {"groups": np.arange(120) // 3}, {"standardize": True},
     {"class_weight": "balanced"}, {"stopping": "validation", "l2": 1e-2}],
    ids=str,
)  # fmt: skip
def test_unknown_rows_are_in_no_draw_and_choose_nothing(settings: dict[str, Any]) -> None:
    """What the activations of unknown rows are is of no account to the concept."""
    of_all = "standardize" in settings  # the deviations are of all rows
    other = X if of_all else np.where(KNOWN[:, None], X, X[::-1])
    labels = {"side": MARKED["not a number"], "kind": KIND}
    settings = {"l2": [1e-1, 1e-2, 1e-3], **settings}
    one, two = (cxp.fit_probes({"x": x}, labels, **settings)["x/side"] for x in (X, other))
    assert one.l2 == two.l2 and one.validation_error == two.validation_error
    assert one.loss == pytest.approx(two.loss, abs=2e-3)


def test_validation_rows_may_be_unknown_too() -> None:
    labels, l2 = {"side": SIDE, "kind": KIND}, [1e-1, 1e-2, 1e-3]
    held = {"side": MARKED["minus a hundred"], "kind": KIND}
    for stopping in ("certificate", "validation"):
        some = cxp.fit_probes(
            {"x": X}, labels, l2=l2, validation=({"x": X}, held), stopping=stopping
        )
        pair = {"x": X[KNOWN]}, SIDE[KNOWN]
        alone = cxp.fit_probes({"x": X}, SIDE, l2=l2, validation=pair, stopping=stopping)["x"]
        assert some["x/side"].l2 == alone.l2
        assert some["x/side"].validation_error == pytest.approx(alone.validation_error)
    none = {"side": np.full(120, -100), "kind": KIND}
    with pytest.raises(ValueError, match=r"validation\['side'\]: expected rows .* found none"):
        cxp.fit_probes({"x": X}, labels, l2=l2, validation=({"x": X}, none))


def test_a_listed_class_is_a_class_whatever_it_looks_like() -> None:
    labels = {"side": MARKED["minus a hundred"]}
    probe = cxp.fit_probes({"x": X}, labels, l2=1e-2, classes=[-100, 0, 1])["x/side"]
    assert probe.rows == 120 and probe.classes == (-100, 0, 1)
    empty = {"side": MARKED["none"]}
    assert cxp.fit_probes({"x": X}, empty, l2=1e-2, classes=[0, 1, None])["x/side"].rows == 120


def test_a_table_of_concepts_may_have_holes() -> None:
    table = np.stack([MARKED["not a number"], SIDE.astype(float)], axis=1)
    for labels in (table, pd.DataFrame(table, columns=["0", "1"])):
        probes = cxp.fit_probes({"x": X}, labels, l2=1e-2)
        assert [probe.rows for probe in probes.values()] == [KNOWN.sum(), 120]


def test_a_probe_knows_its_concept_and_keeps_it_in_a_file(tmp_path: Path) -> None:
    probes = cxp.fit_probes({"x": X}, {"a/b": SIDE, "kind": KIND}, l2=1e-2)
    assert [probe.concept for probe in probes.values()] == ["a/b", "kind"]
    assert cxp.fit_probes({"x": X}, SIDE, l2=1e-2)["x"].concept is None
    probes.save(tmp_path / "probes.safetensors")
    kept = cxp.load_probes(tmp_path / "probes.safetensors")
    assert [probe.concept for probe in kept.values()] == ["a/b", "kind"]
    assert list(cxp.remember(probes, {"x": X}).logits) == ["x/a/b", "x/kind"]


def test_the_control_of_a_task_is_unknown_where_the_task_is() -> None:
    types = np.arange(120) % 20
    control = cxp.control_labels(types, MARKED["minus a hundred"])
    assert ((control == -100) == ~KNOWN).all()
    for word in range(20):
        assert len(np.unique(control[KNOWN & (types == word)])) == 1
    with pytest.raises(ValueError, match="labels: expected rows with a label, found none"):
        cxp.control_labels(types, np.full(120, -100))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"side": np.full(120, -100)}, r"labels\['side'\]: expected rows with a label, found none"),
        ({"side": [None] * 120}, r"labels\['side'\]: expected rows with a label, found none"),
        ({"side": np.where(KNOWN, 1, -100)}, r"labels\['side'\]: expected at least two classes"),
        ({"side": np.where(KNOWN, SIDE + 0.5, np.nan)}, r"labels\['side'\]: row \d+ has 0.5"),
        (np.where(KNOWN, SIDE, -100), "labels: row .* has -100: it marks rows to ignore"),
        (MARKED["none"], "labels: row .* has None: expected a class; leave out rows"),
    ],
)
def test_labels_that_make_no_task_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cxp.fit_probes({"x": X}, labels, l2=1e-2)


def test_a_description_length_needs_every_label() -> None:
    labels = {"side": MARKED["minus a hundred"]}
    with pytest.raises(ValueError, match=r"labels\['side'\]: row \d+ has no label, and a code"):
        cxp.description_length(X, labels)
