"""Options and weights are checked before any work is done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convexprobe import NewtonCG, ProbeSet
from tests.refusals import GOOD, LABELS, Case, N, check_refused, fit, rows, weights

REFUSED: dict[str, Case] = {
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
    "folds in words": (lambda: fit(cv="five"), TypeError, ["cv", "an integer", "'five'"]),
    "negative weight": (lambda: fit(sample_weight=weights(4, -1.0)), ValueError, ["-1", "row 4"]),
    "NaN weight": (lambda: fit(sample_weight=weights(4, np.nan)), ValueError, ["nan", "row 4"]),
    "inf weight": (lambda: fit(sample_weight=weights(4, np.inf)), ValueError, ["inf", "row 4"]),
    "too few weights": (lambda: fit(sample_weight=np.ones(39)), ValueError, ["(40,)", "(39,)"]),
    "no weight": (lambda: fit(sample_weight=np.zeros(N)), ValueError, ["positive weight"]),
    "solver": (lambda: fit(solver="newton_cg"), ValueError, ["newton_cg", "'newton-cg'", "adam"]),
    "far solver": (lambda: fit(solver="zzz"), ValueError, ["zzz", "newton-cholesky, lbfgs"]),
    "negative l2": (lambda: fit(l2=-1e-3), ValueError, ["l2", "at least 0", "-0.001"]),
    "negative l2 in a path": (lambda: fit(l2=[1.0, -1.0]), ValueError, ["l2", "-1"]),
    "NaN l2": (lambda: fit(l2=np.nan), ValueError, ["l2", "finite", "nan"]),
    "inf l2": (lambda: fit(l2=np.inf), ValueError, ["l2", "finite", "inf"]),
    "no l2": (lambda: fit(l2=[]), ValueError, ["l2", "non-empty"]),
    "word l2": (lambda: fit(l2="best"), ValueError, ["l2", '"auto"', "'best'"]),
    "tol 0": (lambda: fit(tol=0), ValueError, ["tol", "above 0", "found 0"]),
    "negative tol": (lambda: fit(tol=-1e-3), ValueError, ["tol", "-0.001"]),
    "NaN tol": (lambda: fit(tol=np.nan), ValueError, ["tol", "nan"]),
    # wrong types
    "weight above float32": (
        lambda: fit(sample_weight=weights(4, 1e40)),
        ValueError,
        ["sample_weight", "1e+40 in row 4", "rescale"],
    ),
    "weight below float32": (
        lambda: fit(sample_weight=weights(4, 1e-50)),
        ValueError,
        ["sample_weight", "1e-50 in row 4", "rescale"],
    ),
    "weights in words": (
        lambda: fit(sample_weight=["a"] * N),
        TypeError,
        ["sample_weight", "numbers", "'a'"],
    ),
    "a word among weights": (
        lambda: fit(sample_weight=[1.0] * 39 + ["a"]),
        TypeError,
        ["sample_weight[39]", "'a'"],
    ),
    "one number as weights": (
        lambda: fit(sample_weight=3),
        TypeError,
        ["sample_weight", "3 (int)"],
    ),
    "a column of weights": (
        lambda: fit(sample_weight=np.ones((N, 1))),
        ValueError,
        ["sample_weight", "(40,)", "(40, 1)"],
    ),
    "masked weights": (
        lambda: fit(sample_weight=np.ma.masked_equal(np.ones(N), 1)),
        TypeError,
        ["sample_weight", "masked"],
    ),
    "solver class": (lambda: fit(solver=NewtonCG), TypeError, ["solver", "NewtonCG()"]),
    "no solver": (lambda: fit(solver=None), TypeError, ["solver", "None"]),
    "numeral l2": (lambda: fit(l2="1e-3"), ValueError, ["l2", '"auto"', "'1e-3'"]),
    "nested l2": (lambda: fit(l2=[[1]]), ValueError, ["l2", "[1] (list)"]),
    "matrix l2": (lambda: fit(l2=np.eye(2)), ValueError, ["l2", "shape (2, 2)"]),
    "flag l2": (lambda: fit(l2=True), TypeError, ["l2", "True (bool)"]),
    "words in l2": (lambda: fit(l2=["a", "b"]), TypeError, ["l2", "numbers"]),
    "None in l2": (lambda: fit(l2=[1.0, None]), TypeError, ["l2[1]", "None"]),
    "no l2 at all": (lambda: fit(l2=None), TypeError, ["l2", "None"]),
    "complex l2": (lambda: fit(l2=1j), TypeError, ["l2", "1j"]),
    "word tol": (lambda: fit(tol="a"), TypeError, ["tol", "'a' (str)"]),
    "list tol": (lambda: fit(tol=[1e-3]), TypeError, ["tol", "list"]),
    "fractional seed": (lambda: fit(seed=1.5), TypeError, ["seed", "an integer", "1.5"]),
    "negative seed": (lambda: fit(seed=-1), ValueError, ["seed", "at least 0", "-1"]),
    "negative cv": (lambda: fit(cv=-1), ValueError, ["cv", "at least 2", "-1"]),
    "flag cv": (lambda: fit(cv=True), TypeError, ["cv", "True"]),
    "negative max_passes": (lambda: fit(max_passes=-1), ValueError, ["max_passes", "-1"]),
    "word max_passes": (lambda: fit(max_passes="many"), TypeError, ["max_passes", "'many'"]),
    "NaN max_seconds": (lambda: fit(max_seconds=np.nan), ValueError, ["max_seconds", "nan"]),
    "stopping by a flag": (lambda: fit(stopping=True), TypeError, ["stopping", "True"]),
    "number as warm_start": (lambda: fit(warm_start=5), TypeError, ["warm_start", "5 (int)"]),
    "mapping as warm_start": (lambda: fit(warm_start={}), TypeError, ["warm_start", "{} (dict)"]),
    "number as validation": (lambda: fit(validation=3), TypeError, ["validation", "pair", "3"]),
    "one array as validation": (lambda: fit(validation=(GOOD,)), TypeError, ["validation", "pair"]),
    "word as progress": (lambda: fit(progress="yes"), TypeError, ["progress", "'yes'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused_with_the_place_the_expected_and_the_found(case: str) -> None:
    check_refused(REFUSED[case])


OPTIONS = [
    "solver", "l2", "tol", "classes", "sample_weight", "warm_start", "validation", "cv", "stopping",
    "seed", "max_passes", "max_seconds", "memory_limit", "progress", "process_group",
]  # fmt: skip
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.floats(), st.text(max_size=3), st.binary(),
    st.complex_numbers(), st.just(object()), st.just(NewtonCG), st.just(len),
    st.recursive(
        st.one_of(st.integers(-1, 1), st.text(max_size=1), st.none()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=1), inner, max_size=2)
        ),
        max_leaves=6,
    ),
    st.builds(lambda v: np.array(v, dtype=object), st.lists(st.one_of(st.none(), st.text()))),
)  # fmt: skip


@given(st.sampled_from(OPTIONS), JUNK)
@settings(max_examples=300)
def test_any_value_of_any_option_works_or_is_refused_by_its_name(option: str, value: Any) -> None:
    options = {"max_passes": 2, option: value}
    try:
        assert isinstance(fit({"fc1": rows()}, **options), ProbeSet)
    except (TypeError, ValueError, OverflowError) as error:
        assert option in str(error), error
