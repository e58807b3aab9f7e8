"""Families of tasks: each task as if it were alone, in blocks of any size, passes counted once."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.linear_model import BY_CLASS
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_sample import Sample
from tests.oracle import Data, random_data
from tests.problem.families import EXACT, everything, family, point


def same_as_separate(problem: Problem, tasks: list[Data], l2: list[float]) -> None:
    w, v = point(problem), point(problem, 1)
    at = problem.evaluate(w)
    product = everything(problem, w).curvature(v)
    batch = problem.batch_gradient(w, np.arange(7))
    for t, task in enumerate(tasks):
        one = task.problem(l2[t])
        alone = one.evaluate(w[t : t + 1])
        for name in ("value", "loss", "gradient", "entropy", "uncertainty"):
            np.testing.assert_allclose(getattr(at, name)[t], getattr(alone, name)[0], **EXACT)
        expected = everything(one, alone.w).curvature(v[t : t + 1])[0]
        np.testing.assert_allclose(product[t], expected, **EXACT)
        expected = one.batch_gradient(w[t : t + 1], np.arange(7))[0]
        np.testing.assert_allclose(batch[t], expected, **EXACT)
        np.testing.assert_allclose(problem.label_entropy[t], task.label_entropy, **EXACT)
        np.testing.assert_allclose(problem.errors(w)[t], one.errors(w[t : t + 1])[0], **EXACT)
        np.testing.assert_allclose(
            problem.constant_classifier()[t], one.constant_classifier()[0], **EXACT
        )


def test_family_of_labels_weights_and_penalties_equals_separate_problems() -> None:
    same_as_separate(*family())


def test_family_with_shared_labels_equals_separate_problems() -> None:
    data = random_data(50, 4, 3, weighted=True)
    l2 = [0.0, 1e-3, 1.0]
    same_as_separate(data.problem(l2), [data] * 3, l2)


def test_family_with_labels_per_task_and_shared_weights() -> None:
    _, tasks, _ = family()
    tasks = [Data(t.x, t.y, 3, tasks[0].weights) for t in tasks]
    labels = np.stack([t.y for t in tasks])
    problem = Problem(Rows(tasks[0].x), labels, 0.1, classes=3, weights=tasks[0].weights)
    same_as_separate(problem, tasks, [0.1] * 3)


@pytest.mark.parametrize("keep", [[0], [2], [2, 0], [0, 1, 2]])
def test_remaining_tasks_are_the_same_tasks(keep: list[int]) -> None:
    problem, tasks, l2 = family()
    same_as_separate(problem.take_tasks(keep), [tasks[t] for t in keep], [l2[t] for t in keep])


@pytest.mark.parametrize("rows", [1, 7, 49, 1000])
def test_block_size_does_not_matter(rows: int) -> None:
    problem, _, _ = family()
    w, v = point(problem), point(problem, 1)
    at, product = problem.evaluate(w), everything(problem, w).curvature(v)
    errors = problem.errors(w)
    blocked, _, _ = family(most_rows=rows)
    assert len(list(blocked.rows.blocks())) == -(-50 // rows)
    again = blocked.evaluate(w)
    for name in ("value", "gradient", "entropy", "uncertainty"):
        np.testing.assert_allclose(getattr(again, name), getattr(at, name), **EXACT)
    np.testing.assert_allclose(everything(blocked, again.w).curvature(v), product, **EXACT)
    np.testing.assert_allclose(blocked.errors(w), errors, **EXACT)
    np.testing.assert_allclose(blocked.moment, problem.moment, **EXACT)


def test_passes_are_counted_once_and_in_the_first_family() -> None:
    problem, _, _ = family()
    assert problem.passes == 0.5  # moments
    at = problem.evaluate(point(problem))
    assert problem.passes == 1.5
    problem.batch_gradient(point(problem), np.arange(25))
    assert problem.passes == 2.0
    problem.errors(point(problem))
    assert problem.passes == 2.5
    sample = Sample.of(problem, at.w, np.arange(10), np.ones(10))
    assert problem.passes == pytest.approx(2.6)
    sample.curvature(point(problem))
    assert problem.passes == pytest.approx(2.8)
    part = problem.take_tasks([1])
    part.evaluate(point(part))
    part.take_tasks([0]).evaluate(point(part))
    assert problem.passes == pytest.approx(4.8)


def test_the_remaining_tasks_see_the_passes_they_spend() -> None:
    problem, _, _ = family()
    part = problem.take_tasks([1])
    before = part.passes
    part.evaluate(point(part))
    assert part.passes == before + 1.0


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("k", [BY_CLASS - 1, BY_CLASS])
def test_moments_of_many_classes_are_those_of_the_definition(
    k: int, weighted: bool, library: ModuleType
) -> None:
    rng = np.random.default_rng(k)
    x, labels = rng.standard_normal((300, 4)), rng.integers(0, k - 1, (2, 300))
    weights = rng.random((2, 300)) if weighted else np.ones((2, 300))
    given = library.asarray(weights) if weighted else None
    rows = Rows(library.asarray(x), 70)
    problem = Problem(rows, library.asarray(labels), 1.0, classes=k, weights=given)
    shares = (labels[:, None, :] == np.arange(k)[:, None]) * weights[:, None, :]
    shares = shares / weights.sum(axis=1)[:, None, None]
    np.testing.assert_allclose(to_numpy(problem.frequency), shares.sum(axis=2), **EXACT)
    np.testing.assert_allclose(to_numpy(problem.moment), shares @ x, **EXACT)
    assert problem.passes == 0.5
