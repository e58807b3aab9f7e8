"""Groups: no draw divides one, classes stay balanced, and what cannot be grouped is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from convexprobe import fit_probes
from convexprobe.probes.groups import assign_groups, read_groups
from convexprobe.probes.splits import assign_folds, hold_out
from tests.claims import check, untimed
from tests.oracle import Data
from tests.refusals import GOOD, LABELS, Case, N, check_refused, fit


class InOrder:
    """A stand-in for a generator that leaves the order as it is."""

    def permutation(self, size: int) -> np.ndarray:
        return np.arange(size)


def sentences(n: int = 600, size: int = 60, k: int = 3, seed: int = 0) -> Data:
    """Rows of which each sentence shares a vector, and its labels are alike."""
    rng = np.random.default_rng(seed)
    of = np.sort(rng.integers(0, size, n))
    y = np.where(rng.random(n) < 0.6, rng.integers(0, k, size)[of], rng.integers(0, k, n))
    y[rng.permutation(n)[: 3 * k]] = np.arange(3 * k) % k
    x = 0.3 * rng.standard_normal((n, 20)) + rng.standard_normal((size, 20))[of]
    return Data(x, y, k, of.astype(float))


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 4))
def test_folds_are_those_of_scikit_learn(seed: int, folds: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    groups, y = rng.integers(0, 25, 150), rng.integers(0, k, 150)
    ours = assign_groups(y, groups, folds, InOrder())  # type: ignore[arg-type]
    splits = StratifiedGroupKFold(folds).split(np.zeros(150), y, groups)
    for fold, (_, held) in enumerate(splits):
        np.testing.assert_array_equal(np.flatnonzero(ours == fold), held)


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 4), st.booleans())
def test_no_draw_divides_a_group_or_takes_all_of_a_class(
    seed: int, size: int, k: int, weighted: bool
) -> None:
    rng = np.random.default_rng(seed)
    groups, y = rng.integers(0, size, 200), rng.integers(0, k, 200)
    weights = rng.integers(0, 3, 200) * 1.0 if weighted else None
    counted = np.ones(200, bool) if weights is None else weights > 0
    held = hold_out(y, weights, seed, groups=groups)
    fold = assign_folds(y, weights, 2, seed, groups=groups)
    assert held.any() and not (held & ~counted).any() and (fold[~counted] == -1).all()
    for group in np.unique(groups):
        assert len(np.unique(held[counted & (groups == group)])) <= 1
        assert len(np.unique(fold[counted & (groups == group)])) <= 1
    assert set(y[counted & ~held]) == set(y[counted])
    np.testing.assert_array_equal(held, hold_out(y, weights, seed, groups=groups))


def test_many_small_groups_hold_out_a_fifth_of_each_class() -> None:
    data = sentences(5000, 700, 4)
    assert data.weights is not None
    held = hold_out(data.y, None, 3, groups=data.weights.astype(int))
    for c in range(4):
        assert np.mean(held[data.y == c]) == pytest.approx(0.2, abs=0.01)
    assert (held != hold_out(data.y, None, 4, groups=data.weights.astype(int))).any()


def test_a_group_that_has_all_of_a_class_is_never_held_out() -> None:
    y = np.repeat([0, 1, 2], [100, 95, 5])
    groups = np.arange(200) % 10
    groups[y == 2] = 10
    for seed in range(20):
        assert not hold_out(y, None, seed, groups=groups)[y == 2].any()
        assert (assign_folds(y, None, 5, seed, groups=groups)[y == 2] == -1).all()


def test_a_probe_of_grouped_rows_is_scored_on_groups_it_has_not_seen() -> None:
    data = sentences()
    of = data.weights
    assert of is not None
    plain = Data(data.x, data.y, 3)
    leaky = fit_probes(data.x, data.y, l2=[1e-3, 1e-2])["activations"]
    names = [f"sentence {int(i)}" for i in of]
    probe = fit_probes(data.x, data.y, l2=[1e-3, 1e-2], groups=names, seed=1)["activations"]
    assert probe.validation_error is not None and leaky.validation_error is not None
    assert probe.validation_error > leaky.validation_error + 0.1
    check(probe, plain)
    number = read_groups(names, 600)
    held = hold_out(data.y, None, 1, groups=number)
    part = fit_probes(data.x[~held], data.y[~held], l2=probe.l2)["activations"]
    score = part.evaluate(data.x[held], data.y[held])
    assert probe.validation_error == pytest.approx(score.error, abs=0.02)
    folds = fit_probes(data.x, data.y, l2=0.01, cv=4, groups=of)["activations"]
    fold = assign_folds(data.y, None, 4, 0, groups=read_groups(of, 600))
    errors = [
        fit_probes(data.x[fold != f], data.y[fold != f], l2=0.01)["activations"]
        .evaluate(data.x[fold == f], data.y[fold == f])
        .error
        for f in range(4)
    ]
    assert folds.validation_error == pytest.approx(np.mean(errors), abs=0.01)


def test_groups_without_a_choice_change_nothing() -> None:
    plain, grouped = fit(l2=0.1), fit(l2=0.1, groups=np.arange(N) // 4)
    for name in plain:
        np.testing.assert_array_equal(plain[name].weights, grouped[name].weights)


class Tokens(dict):  # type: ignore[type-arg]
    """Activations whose rows are tokens."""

    examples = np.arange(N) // 4


def test_tokens_are_grouped_by_their_examples() -> None:
    tokens = Tokens(GOOD)
    default = fit(tokens, l2="auto")
    told = fit(l2="auto", groups=np.arange(N) // 4)
    alone = fit(l2="auto")
    for name, probe in default.items():
        assert untimed(probe.path) == untimed(told[name].path) != untimed(alone[name].path)
    assert fit(tokens, l2="auto", groups=np.arange(N))["fc1"].path  # the caller's own come first


def test_groups_may_be_anything_hashable() -> None:
    numbers = [0, 1, 1, 0, 2]
    for values in (["b", "c", "c", "b", "d"], [("x", 1), 2, 2, ("x", 1), "y"]):
        codes = read_groups(values, 5)
        assert codes is not None
        assert (codes[:, None] == codes).tolist() == [[a == b for b in numbers] for a in numbers]
    assert read_groups(None, 5) is None


HALVES = np.arange(N) // 20
CASES: dict[str, Case] = {
    "another length": (lambda: fit(groups=[1, 2]), ValueError, ["groups: ", "(40,)", "(2,)"]),
    "a matrix": (lambda: fit(groups=np.ones((N, 2))), ValueError, ["groups: ", "(40, 2)"]),
    "one group": (
        lambda: fit(groups=["a"] * N),
        ValueError,
        ["groups: expected at least two groups, found 1"],
    ),
    "a NaN": (
        lambda: fit(groups=[1.0] * 7 + [np.nan] + [2.0] * 32),
        ValueError,
        ["groups: row 7 has nan"],
    ),
    "None": (
        lambda: fit(groups=["a"] * 39 + [None]),
        ValueError,
        ["groups: row 39 has None", "a value of its own"],
    ),
    "a text": (lambda: fit(groups="sentence"), TypeError, ["groups: expected an array or a list"]),
    "lists": (lambda: fit(groups=[[1]] * N), ValueError, ["groups: row 0"]),
    "more folds than groups": (
        lambda: fit(groups=np.arange(N) // 14, cv=4),
        ValueError,
        ["groups: cv=4 needs 4 groups", "found 3"],
    ),
    "a group for each class": (
        lambda: fit(labels=HALVES, groups=HALVES, l2="auto"),
        ValueError,
        ["groups: validation rows are needed", "pass validation="],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_groups_that_cannot_be_used_are_refused(case: Case) -> None:
    check_refused(case)


def test_a_draw_does_not_touch_the_global_state() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    hold_out(LABELS, None, 0, groups=np.arange(N) // 4)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002
