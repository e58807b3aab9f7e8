"""Several seeds of held-out rows are one family, and each is what it is alone."""

from __future__ import annotations

import numpy as np
import pytest

from convexprobe import fit_probes
from tests.claims import check
from tests.oracle import random_data
from tests.refusals import Case, check_refused, fit

DATA = random_data(300, 5, 3)
SEEDS = [3, 1, 7, 4]


@pytest.mark.parametrize("l2", [0.05, [1e-3, 1e-1]])
def test_several_seeds_are_what_each_is_alone(l2: float | list[float]) -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=l2, seed=SEEDS, tol=1e-6)["activations"]
    alone = [
        fit_probes(DATA.x, DATA.y, l2=[probe.l2, 1e9], seed=seed, tol=1e-6, refit=False)
        for seed in SEEDS
    ]
    errors = [probes["activations"].path[0].validation_error for probes in alone]
    np.testing.assert_allclose(probe.validation_errors, errors, atol=1 / 60 + 1e-9)
    assert probe.validation_error == pytest.approx(np.mean(probe.validation_errors))
    check(probe, DATA)  # it is fitted again to all rows
    assert probe.rows == 300 and len(set(probe.validation_errors)) > 1


def test_seeds_of_concepts_and_groups_are_one_family() -> None:
    labels = {"class": DATA.y, "zero": DATA.y == 0}
    groups = np.arange(300) // 5
    probes = fit_probes(DATA.x, labels, seed=range(3), groups=groups)
    for probe in probes.values():
        assert len(probe.validation_errors) == 3 and len(probe.path) > 1
        assert min(p.validation_error for p in probe.path) == probe.validation_error
    last = fit_probes(DATA.x, labels, seed=range(3), groups=groups, refit=False)
    assert last["activations/zero"].rows < 300


def test_the_folds_of_a_cross_validation_are_told_one_by_one() -> None:
    probe = fit_probes(DATA.x, DATA.y, l2=[1e-2, 1e-1], cv=5)["activations"]
    assert len(probe.validation_errors) == 5
    assert np.mean(probe.validation_errors) == pytest.approx(probe.validation_error)
    assert fit_probes(DATA.x, DATA.y, l2=0.1)["activations"].validation_errors == ()


CASES: dict[str, Case] = {
    "none": (lambda: fit(seed=[]), ValueError, ["seed: expected an integer or distinct"]),
    "twice": (lambda: fit(seed=[1, 1]), ValueError, ["seed:", "distinct", "(1, 1)"]),
    "negative": (lambda: fit(seed=[0, -1]), ValueError, ["seed[1]: expected an integer"]),
    "text": (lambda: fit(seed="12"), TypeError, ["seed: expected an integer", "'12'"]),
    "beside folds": (lambda: fit(seed=[0, 1], cv=3), ValueError, ["seed:", "omit cv="]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_seeds_that_cannot_be_used_are_refused(case: Case) -> None:
    check_refused(case)
