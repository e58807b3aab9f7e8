"""The scores of a set of probes: by layer and concept, with intervals by groups."""

from __future__ import annotations

import numpy as np
import pytest

from convexprobe import Scores, fit_probes
from convexprobe.probes.groups import read_groups
from tests.oracle import random_data
from tests.refusals import GOOD, LABELS, Case, N, check_refused, fit

DATA = random_data(300, 5, 3)
HELD = random_data(200, 5, 3, seed=9)
OF = [f"sentence {i}" for i in np.random.default_rng(0).integers(0, 30, 200)]
CONCEPTS = {"class": DATA.y, "zero": DATA.y == 0}
HELD_CONCEPTS = {"class": HELD.y, "zero": HELD.y == 0}
PROBES = fit_probes({"a": DATA.x, "b/c": DATA.x[:, :3]}, CONCEPTS, l2=0.01)
LAYERS = {"a": HELD.x, "b/c": HELD.x[:, :3]}


def test_scores_have_a_frame_by_layer_and_concept() -> None:
    scores = PROBES.evaluate(LAYERS, HELD_CONCEPTS, bootstrap=50, groups=OF)
    assert isinstance(scores, dict) and [*scores] == ["a/class", "a/zero", "b/c/class", "b/c/zero"]
    frame = scores.to_frame()
    assert frame.index.names == ["layer", "concept"]
    for name, score in scores.items():
        row = frame.loc[scores.places[name]]
        assert row["auroc"] == score.auroc and row["rows"] == 200
        assert (row["auroc_low"], row["auroc_high"]) == score.interval("auroc")
        assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
    plain = fit_probes(DATA.x, DATA.y, l2=0.1).evaluate(HELD.x, HELD.y)
    assert plain.to_frame().index.name == "layer" and "auroc_low" not in plain.to_frame()
    assert str(plain).splitlines()[0].split()[:3] == ["probe", "rows", "error"]
    assert str(Scores({})) and repr(plain) == str(plain)


def test_the_table_of_scores_with_samples_has_the_interval_of_the_error() -> None:
    scores = PROBES.evaluate(LAYERS, HELD_CONCEPTS, bootstrap=20)
    head, *cells = scores.cells()
    at = head.index("error_95%")
    assert head[at - 1] == "error" and len(set(map(len, cells))) == 1
    for row, score in zip(cells, scores.values(), strict=True):
        low, high = score.interval("error")
        assert row[at] == f"{low:.2%} to {high:.2%}"
    assert "error_95%" not in str(PROBES.evaluate(LAYERS, HELD_CONCEPTS))


def test_samples_of_one_seed_are_paired_and_groups_widen_them() -> None:
    same = dict(zip("ab", (DATA.x, DATA.x), strict=True))
    probes = fit_probes(same, DATA.y, l2=0.01)
    held = dict.fromkeys("ab", HELD.x)
    scores = probes.evaluate(held, HELD.y, bootstrap=30, groups=OF, seed=4)
    for name, values in scores["a"].samples.items():
        np.testing.assert_array_equal(values, scores["b"].samples[name])
    one = probes["a"].evaluate(HELD.x, HELD.y, bootstrap=30, groups=OF, seed=4)
    np.testing.assert_array_equal(one.samples["loss"], scores["a"].samples["loss"])
    other = probes["a"].evaluate(HELD.x, HELD.y, bootstrap=30, groups=OF, seed=5)
    assert (one.samples["loss"] != other.samples["loss"]).any()
    twins, of = np.repeat(HELD.x, 25, axis=0), np.repeat(np.arange(200), 25)
    truth = np.repeat(HELD.y, 25)
    alone, grouped = (
        probes["a"].evaluate(twins, truth, bootstrap=200, groups=g).interval("loss")
        for g in (None, of)
    )
    assert grouped[1] - grouped[0] > 4 * (alone[1] - alone[0])


def test_a_bootstrap_interval_has_the_width_of_the_central_limit_theorem() -> None:
    probe = PROBES["a/class"]
    score = probe.evaluate(HELD.x, HELD.y, bootstrap=2000)
    losses = -np.asarray(probe.predict_log_proba(HELD.x))[np.arange(200), HELD.y]
    low, high = score.interval("loss")
    assert high - low == pytest.approx(2 * 1.96 * losses.std() / 200**0.5, rel=0.1)
    assert score.loss == pytest.approx(losses.mean()) and low < score.loss < high


class Tokens(dict):  # type: ignore[type-arg]
    examples = read_groups(OF, 200)


def test_tokens_are_drawn_by_their_examples() -> None:
    by_default = PROBES.evaluate(Tokens(LAYERS), HELD_CONCEPTS, bootstrap=20)
    told = PROBES.evaluate(LAYERS, HELD_CONCEPTS, bootstrap=20, groups=OF)
    for name, score in told.items():
        np.testing.assert_array_equal(score.samples["f1"], by_default[name].samples["f1"])


SET = fit()
CASES: dict[str, Case] = {
    "another length": (
        lambda: SET.evaluate(GOOD, LABELS, groups=[1, 2], bootstrap=9),
        ValueError,
        ["groups: expected one value a row", "(40,)"],
    ),
    "one group": (
        lambda: SET["fc1"].evaluate(GOOD["fc1"], LABELS, groups=[1] * N, bootstrap=9),
        ValueError,
        ["groups: expected at least two groups"],
    ),
    "samples": (
        lambda: SET.evaluate(GOOD, LABELS, bootstrap=-1),
        ValueError,
        ["bootstrap: expected an integer of at least 0"],
    ),
    "a share": (
        lambda: SET["fc1"].evaluate(GOOD["fc1"], LABELS, bootstrap=0.5),
        TypeError,
        ["bootstrap: expected an integer"],
    ),
    "seed": (
        lambda: SET.evaluate(GOOD, LABELS, bootstrap=2, seed="a"),
        TypeError,
        ["seed: expected an integer"],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_samples_that_cannot_be_drawn_are_refused(case: Case) -> None:
    check_refused(case)
