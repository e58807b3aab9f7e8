"""Paths of penalties: tasks solved together, their budgets, and early stopping."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from convexprobe import Status, fit_probes
from convexprobe.activations.source import Rows
from convexprobe.probes.splits import hold_out
from convexprobe.problem.objective import Problem
from convexprobe.solvers import SOLVERS
from convexprobe.solvers.path import solve_path
from convexprobe.solvers.walk import Trail, Walk
from tests.claims import distance
from tests.oracle import Data, minimum, random_data

DATA = random_data(200, 6, 3)
HELD = random_data(100, 6, 3, seed=7)
PATH = [1e-3, 1.0, 1e-1, 1e-4, 10.0, 1e-2]
"""Six values in no order: more than are solved together."""


@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs"])
@pytest.mark.parametrize(("together", "memory"), [(4, 2e9), (1, 2e9), (4, 0.0), (99, 2e9)])
def test_how_tasks_are_grouped_does_not_change_the_answer(
    solver: str, together: int, memory: float
) -> None:
    labels = np.stack([DATA.y, np.minimum(DATA.y, 1)])
    base = Problem(Rows(DATA.x), labels, 0.0, classes=3)
    solutions = solve_path(
        base, np.array(PATH), SOLVERS[solver](), None, tol=1e-3, max_passes=1000.0,
        max_seconds=np.inf, neighbours=together, memory=memory,
    )  # fmt: skip
    for y, found in zip(labels, solutions, strict=True):
        assert [solution.l2 for solution in found] == PATH
        for solution in found:
            best = minimum(Data(DATA.x, y, 3 if y.max() == 2 else 2), solution.l2)[1]
            assert solution.status is Status.CERTIFIED
            assert -1e-10 <= solution.objective - best <= solution.gap


def test_budgets_hold_for_the_whole_path() -> None:
    settings = {"l2": PATH, "tol": 1e-12, "validation": (HELD.x, HELD.y)}
    probe = fit_probes(DATA.x, DATA.y, "lbfgs", max_passes=2, **settings)["activations"]
    assert {point.status for point in probe.path} == {Status.MAX_PASSES}
    assert probe.passes <= 2 + 2 + 1  # a step at most beyond it, and the second chunk's look
    probe = fit_probes(DATA.x, DATA.y, "lbfgs", max_seconds=0.0, **settings)["activations"]
    assert {point.status for point in probe.path} == {Status.MAX_SECONDS}
    assert all(np.isfinite(point.gap) for point in probe.path)


@pytest.mark.parametrize("solver", ["auto", "newton-cg", "lbfgs"])
def test_a_step_of_a_walk_starts_from_the_last_evaluation(solver: str) -> None:
    base = Problem(Rows(DATA.x), DATA.y, 0.0, classes=3)
    walk = Walk(lambda task, found: 1e3 - found.passes, [0], notable=0.0, further=0)
    penalties = np.array([1e-2, 1e-2 * (1.0 - 1e-9), 1e-3])
    (found,) = solve_path(
        base, penalties, SOLVERS[solver](), None, tol=1e-3, max_passes=1000.0,
        max_seconds=np.inf, walk=walk,
    )  # fmt: skip
    looked = found[1].passes - found[0].passes
    assert looked <= 0.5 + 1.5 * found[1].steps  # a bound's sample; to look again was a pass
    assert found[1].steps <= 1 < found[2].steps
    for solution in found:
        best = minimum(DATA, solution.l2)[1]
        assert solution.status is Status.CERTIFIED
        assert -1e-10 <= solution.objective - best <= solution.gap


ENDS = {
    "nothing yet": ([], False),
    "falls": ([3.0, 2.0, 1.0], False),
    "a little higher": ([3.0, 2.0, 2.2], False),
    "higher twice": ([3.0, 2.0, 2.2, 2.4], True),
    "higher, lower": ([3.0, 2.0, 2.2, 1.9], False),
    "twice by no more than noise": ([3.0, 2.0, 2.004, 2.008], False),
    "a quarter higher": ([3.0, 2.0, 2.6], True),
    "a quarter higher by no more than noise": ([0.02, 0.03], False),
    "nothing left to gain": ([3.0, 0.009], True),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_walk_ends_where_smaller_penalties_have_nothing_to_gain(case: str) -> None:
    losses, ends = ENDS[case]
    assert Trail(list(losses)).ends(0.01) is ends


NOISE = random_data(60, 30, 3)
FRESH = random_data(400, 30, 3, seed=9)  # other labels: what fits NOISE soon fits these worse


@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs", "adam"])
def test_early_stopping_returns_the_point_of_lowest_validation_loss(
    solver: str, library: ModuleType
) -> None:
    x = library.asarray(NOISE.x)
    held = (library.asarray(FRESH.x), FRESH.y)
    early = fit_probes(x, NOISE.y, solver, l2=1e-4, stopping="validation", validation=held)
    probe = early["activations"]
    assert probe.status is Status.VALIDATION
    assert str(early).splitlines()[1].split()[-1] == "validation"
    assert -1e-9 <= distance(probe, NOISE) <= probe.gap  # of that point, far from the optimum
    assert probe.gap > 1e-3 * NOISE.label_entropy
    full = fit_probes(x, NOISE.y, l2=1e-4)["activations"]
    assert probe.evaluate(*held).loss < full.evaluate(*held).loss
    assert probe.validation_error == probe.evaluate(*held).error


def test_early_stopping_on_a_held_out_fifth_for_each_concept() -> None:
    labels = {"digit": DATA.y, "one": (DATA.y == 1).astype(int)}
    probes = fit_probes(DATA.x, labels, l2=PATH, stopping="validation", seed=2)
    for name, y in labels.items():
        alone = fit_probes(DATA.x, y, l2=PATH, stopping="validation", seed=2)["activations"]
        probe = probes[f"activations/{name}"]
        weights = 1.0 - hold_out(y, None, 2)
        for found in (probe, alone):
            assert found.rows == weights.sum() and found.validation_error is not None
            data = Data(DATA.x, y, len(found.classes), weights)
            assert -1e-9 <= distance(found, data) <= found.gap
            for point in found.path:  # stopped early, or so close that nothing is left to gain
                close = point.gap <= 1e-5 * data.label_entropy
                assert point.status is (Status.CERTIFIED if close else Status.VALIDATION)


def test_a_class_without_rows_to_fit_does_not_hide_the_validation_loss() -> None:
    some = NOISE.y != 2
    probe = fit_probes(
        NOISE.x[some],
        NOISE.y[some],
        l2=1e-4,
        classes=[0, 1, 2],
        stopping="validation",
        validation=(FRESH.x, FRESH.y),
    )["activations"]
    assert probe.status is Status.VALIDATION and probe.gap > 1e-3
