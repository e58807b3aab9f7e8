"""Control labels know a word's type alone; selectivity is what a task has above them."""

from __future__ import annotations

import numpy as np
import pytest

from convexprobe import control_labels, fit_probes
from tests.refusals import Case, check_refused

RNG = np.random.default_rng(0)
WORDS = RNG.integers(0, 300, 6000)
TAGS = np.array(["noun", "verb", "other"])[np.searchsorted([0.2, 0.5], RNG.random(300))[WORDS]]


def test_every_type_has_one_label_drawn_by_the_labels_frequencies() -> None:
    types = np.arange(20_000) // 2
    tags = np.array(["a", "b", "c"])[np.searchsorted([0.7, 0.9], RNG.random(20_000))]
    drawn = control_labels(types, tags)
    assert drawn.dtype == tags.dtype and (drawn[::2] == drawn[1::2]).all()
    for tag in "abc":
        assert np.mean(drawn == tag) == pytest.approx(np.mean(tags == tag), abs=0.015)
    by_type = drawn[::2]
    assert abs(np.corrcoef(by_type[1:] == "a", by_type[:-1] == "a")[0, 1]) < 0.05


def test_a_seed_decides_and_rows_may_come_in_any_order() -> None:
    drawn = control_labels(WORDS, TAGS, seed=1)
    np.testing.assert_array_equal(drawn, control_labels([f"{w:03}" for w in WORDS], TAGS, seed=1))
    assert (drawn != control_labels(WORDS, TAGS, seed=2)).any()
    tuples = [("word", int(w)) for w in WORDS]
    np.testing.assert_array_equal(drawn, control_labels(tuples, list(TAGS), seed=1))
    assert control_labels([3, 3], [("a", 1), ("b", 2)])[0] in [("a", 1), ("b", 2)]


def test_selectivity_is_the_difference_of_the_accuracies() -> None:
    words = RNG.integers(0, 40, 1500)
    code = RNG.standard_normal((40, 12))
    tags = (code[:, 0] > 0).astype(int)[words]
    x = code[words] + 0.5 * RNG.standard_normal((1500, 12))
    labels = {"tag": tags, "control": control_labels(words, tags)}
    fitted, held = slice(0, 1000), slice(1000, 1500)
    layers = {"one": x, "two": np.tanh(x)}
    probes = fit_probes(
        {n: v[fitted] for n, v in layers.items()},
        {n: y[fitted] for n, y in labels.items()},
        l2=0.01,
    )
    given = {n: v[held] for n, v in layers.items()}, {n: y[held] for n, y in labels.items()}
    scores = probes.evaluate(*given, bootstrap=300)
    for layer, found in scores.selectivity("tag", "control").items():
        task, control = (
            np.mean(probes[f"{layer}/{name}"].predict(layers[layer][held]) == labels[name][held])
            for name in ("tag", "control")
        )
        assert found.value == pytest.approx(task - control) and found.value > 0.1
        assert found.low is not None and found.high is not None
        assert found.low < found.value < found.high
    plain = probes.evaluate(*given).selectivity("tag", "control")
    assert plain["one"].low is None and plain["one"].value == pytest.approx(
        scores.selectivity("tag", "control")["one"].value
    )
    with pytest.raises(ValueError, match="layer 'one' has no score of concept 'number'"):
        scores.selectivity("tag", "number")


CASES: dict[str, Case] = {
    "another length": (
        lambda: control_labels([1, 2], [1, 2, 3]),
        ValueError,
        ["labels: expected 2 labels", "found 3"],
    ),
    "no rows": (lambda: control_labels([], []), ValueError, ["types: expected a word type"]),
    "a missing type": (
        lambda: control_labels(["a", None], [1, 2]),
        ValueError,
        ["types: row 1 has None"],
    ),
    "a soft label": (
        lambda: control_labels(["a", "b"], [1, 0.5]),
        ValueError,
        ["labels: row 1 has 0.5", "soft labels"],
    ),
    "a text": (lambda: control_labels("ab", [1, 2]), TypeError, ["types: expected an array"]),
    "a seed": (lambda: control_labels([1], [1], seed=-1), ValueError, ["seed: expected an int"]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_types_and_labels_that_do_not_fit_are_refused(case: Case) -> None:
    check_refused(case)
