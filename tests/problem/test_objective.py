"""The objective against its definition: finite differences, separate problems, symmetries."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers import NewtonCG
from convexprobe.solvers.loop import solve
from tests.oracle import Data, dense_hessian, minimum, random_data, reference

EXACT = {"rtol": 1e-11, "atol": 1e-12}  # float64 sums of at most 100 terms of size 1


def point(problem: Problem, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((problem.m, problem.p))


def everything(problem: Problem, w: Any) -> Sample:
    """All rows, held at `w`."""
    return Sample.of(problem, w, np.arange(problem.n), np.ones(problem.n))


@given(
    n=st.integers(5, 60),
    d=st.integers(1, 8),
    k=st.integers(2, 5),
    l2=st.sampled_from([0.0, 1e-6, 1e-2, 10.0]),
    weighted=st.booleans(),
    scale=st.sampled_from([1e-2, 1.0, 10.0]),
    seed=st.integers(0, 999),
)
def test_value_gradient_and_hessian_are_those_of_the_definition(
    n: int, d: int, k: int, l2: float, weighted: bool, scale: float, seed: int
) -> None:
    data = random_data(n, d, k, seed, weighted=weighted)
    problem = data.problem(l2)
    w = point(problem, seed, scale)
    value, gradient, p = reference(data, w[0], l2)
    at = problem.evaluate(w)
    np.testing.assert_allclose(at.value, [value], **EXACT)
    np.testing.assert_allclose(at.gradient, gradient[None], rtol=1e-9, atol=1e-11)
    # Independent facts that certificates and sampling rest on.
    s = np.ones(n) if data.weights is None else data.weights
    safe = np.where(p > 0, p, 1.0)
    entropy = np.sum(s * -np.sum(p * np.log(safe), axis=1)) / s.sum()
    np.testing.assert_allclose(at.entropy, [entropy], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(at.uncertainty, [1 - np.sum(p**2, axis=1)], atol=1e-12)
    v = point(problem, seed + 1)
    product = v @ dense_hessian(data, p, l2)
    sampled = everything(problem, at.w).curvature(v)
    np.testing.assert_allclose(sampled, product, rtol=1e-8, atol=1e-11)


def test_gradient_and_curvature_are_finite_differences() -> None:
    problem = random_data(40, 4, 3, weighted=True).problem([1e-3, 1.0])
    w, v, h = point(problem), point(problem, 1), 1e-5
    up, at, down = (problem.evaluate(w + t * h * v) for t in (1, 0, -1))
    slope = np.sum(at.gradient * v, axis=1)
    # Central differences: error h^2 times a third derivative, plus eps / h of rounding.
    np.testing.assert_allclose((up.value - down.value) / (2 * h), slope, rtol=1e-7, atol=1e-9)
    change = (up.gradient - down.gradient) / (2 * h)
    np.testing.assert_allclose(everything(problem, w).curvature(v), change, rtol=1e-6, atol=1e-8)


def family(seed: int = 0, most_rows: int = 50) -> tuple[Problem, list[Data], list[float]]:
    """Three tasks that differ in everything that can differ."""
    base = random_data(50, 4, 3, seed)
    rng = np.random.default_rng(seed + 1)
    labels = np.stack([base.y, rng.permutation(base.y), rng.integers(0, 3, 50)])
    weights, l2 = rng.exponential(size=(3, 50)), [1e-3, 1e-1, 2.0]
    tasks = [Data(base.x, labels[t], 3, weights[t]) for t in range(3)]
    rows = Rows(base.x, most_rows)
    return Problem(rows, labels, l2, classes=3, weights=weights), tasks, l2


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


def test_a_repeated_row_equals_weight_two() -> None:
    data = random_data(30, 3, 3)
    twice = Data(np.vstack([data.x, data.x[:5]]), np.concatenate([data.y, data.y[:5]]), 3)
    double = Data(data.x, data.y, 3, np.where(np.arange(30) < 5, 2.0, 1.0))
    a, b = twice.problem(0.1), double.problem(0.1)
    w, v = point(a), point(a, 1)
    at_a, at_b = a.evaluate(w), b.evaluate(w)
    np.testing.assert_allclose(at_a.value, at_b.value, **EXACT)
    np.testing.assert_allclose(at_a.gradient, at_b.gradient, **EXACT)
    np.testing.assert_allclose(
        everything(a, at_a.w).curvature(v), everything(b, at_b.w).curvature(v), **EXACT
    )
    np.testing.assert_allclose(a.label_entropy, b.label_entropy, **EXACT)
    np.testing.assert_allclose(a.errors(w), b.errors(w), **EXACT)


def test_the_scale_of_the_weights_does_not_matter() -> None:
    data = random_data(30, 3, 3, weighted=True)
    assert data.weights is not None
    a, b = data.problem(0.1), Data(data.x, data.y, 3, 1e3 * data.weights).problem(0.1)
    np.testing.assert_allclose(
        a.evaluate(point(a)).gradient, b.evaluate(point(a)).gradient, **EXACT
    )


def test_permuting_classes_permutes_the_solution() -> None:
    data = random_data(60, 3, 4, weighted=True)
    order = np.array([2, 0, 3, 1])  # class c becomes order[c]
    permuted = Data(data.x, order[data.y], 4, data.weights)
    first, second = data.problem(1e-2), permuted.problem(1e-2)
    a = solve(first, NewtonCG(), tol=1e-11)
    b = solve(second, NewtonCG(), tol=1e-11)
    wa, ba = first.split(a.w)
    wb, bb = second.split(b.w)
    # A gap of 1e-11 leaves sqrt(2e-11 / l2) = 5e-5 in the weights at most.
    np.testing.assert_allclose(wb[:, order], wa, atol=1e-4)
    spread = bb[:, order] - ba  # biases are free up to a constant
    np.testing.assert_allclose(spread - spread.mean(), 0.0, atol=1e-3)


def test_absent_classes_change_nothing() -> None:
    data = random_data(40, 3, 3)
    wide = Data(data.x, data.y + 1, 6)  # classes 0, 4 and 5 have no rows
    a, b = data.problem(0.1), wide.problem(0.1)
    w = point(b)
    weights, bias = b.split(w)
    value = b.evaluate(w)
    alone = a.evaluate(a.join(weights[:, 1:4], bias[:, 1:4]))
    absent = 0.05 * np.sum(weights[:, [0, 4, 5]] ** 2)
    np.testing.assert_allclose(value.value, alone.value + absent, **EXACT)
    gradient, slope = b.split(value.gradient)
    np.testing.assert_allclose(gradient[:, 1:4], a.split(alone.gradient)[0], **EXACT)
    np.testing.assert_allclose(gradient[:, [0, 4, 5]], 0.1 * weights[:, [0, 4, 5]], **EXACT)
    assert not slope[:, [0, 4, 5]].any()
    solution = solve(b, NewtonCG(), tol=1e-9)
    assert not b.split(solution.w)[0][:, [0, 4, 5]].any()
    assert abs(solution.objective[0] - minimum(data, 0.1)[1]) <= solution.gap[0] + 1e-12
    assert (
        b.errors(solution.w) == a.errors(a.join(*(s[:, 1:4] for s in b.split(solution.w))))
    ).all()


def test_a_class_whose_rows_weigh_nothing_is_absent() -> None:
    data = random_data(40, 3, 3)
    with_weights = Data(data.x, data.y, 3, (data.y != 2).astype(float))
    only = data.y != 2
    a, b = with_weights.problem(0.1), Data(data.x[only], data.y[only], 3).problem(0.1)
    np.testing.assert_allclose(
        a.evaluate(point(a)).gradient, b.evaluate(point(a)).gradient, **EXACT
    )


HALVES: list[Any] = [
    (torch.float16, 1e-6),
    (torch.bfloat16, 1e-6),
    (torch.float32, 1e-6),
    (torch.float64, 1e-14),
]


@pytest.mark.parametrize(("dtype", "tolerance"), HALVES, ids=lambda v: str(v))
def test_narrow_activations_are_multiplied_in_float32(dtype: Any, tolerance: float) -> None:
    data = random_data(80, 5, 3)
    x = torch.tensor(data.x).to(dtype)
    rounded = Data(x.double().numpy(), data.y, 3)  # the objective of what was stored, not of data
    problem = Problem(Rows(x), torch.tensor(data.y), 0.1, classes=3)
    w = point(problem).astype(np.float32).astype(np.float64)
    value, gradient, _ = reference(rounded, w[0], 0.1)
    at = problem.evaluate(torch.tensor(w))
    assert at.value.dtype == at.gradient.dtype == torch.float64
    np.testing.assert_allclose(to_numpy(at.value), [value], rtol=tolerance)
    np.testing.assert_allclose(to_numpy(at.gradient)[0], gradient, atol=tolerance)
    assert abs(float(at.value[0]) - value) <= float(at.rounding[0])


def test_numpy_float16_is_multiplied_in_float32() -> None:
    data = random_data(80, 5, 3)
    half = data.problem(0.1, dtype=np.float16)
    rounded = Data(data.x.astype(np.float16).astype(float), data.y, 3)
    w = point(half).astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(half.evaluate(w).value, reference(rounded, w[0], 0.1)[0], rtol=1e-6)


def test_the_point_reported_is_the_point_multiplied() -> None:
    problem = random_data(40, 3, 3).problem(0.1, dtype=np.float32)
    w = point(problem) / 3
    at = problem.evaluate(w)
    np.testing.assert_array_equal(at.w, w.astype(np.float32).astype(np.float64))


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


def test_libraries_agree(library: ModuleType) -> None:
    data = random_data(60, 4, 3, weighted=True)
    labels = np.stack([data.y, np.roll(data.y, 1)])
    weights = np.stack([data.weights, np.roll(data.weights, 1)])

    def build(xp: ModuleType) -> Problem:
        a = xp.asarray
        return Problem(Rows(a(data.x)), a(labels), [0.1, 1.0], classes=3, weights=a(weights))

    ours, theirs = build(np), build(library)
    w, v = point(ours), point(ours, 1)
    at, other = ours.evaluate(w), theirs.evaluate(library.asarray(w))
    for name in ("value", "loss", "gradient", "entropy", "uncertainty", "rounding"):
        np.testing.assert_allclose(to_numpy(getattr(other, name)), getattr(at, name), **EXACT)
    np.testing.assert_allclose(theirs.errors(library.asarray(w)), ours.errors(w), **EXACT)
    a = Sample.draw(ours, at, 20, np.random.default_rng(0))
    b = Sample.draw(theirs, other, 20, np.random.default_rng(0))
    np.testing.assert_array_equal(a.index, b.index)
    sampled = to_numpy(b.curvature(library.asarray(v)))
    np.testing.assert_allclose(sampled, a.curvature(v), **EXACT)
    batch = theirs.batch_gradient(library.asarray(w), np.array([3, 1, 4]))
    np.testing.assert_allclose(
        to_numpy(batch), ours.batch_gradient(w, np.array([3, 1, 4])), **EXACT
    )


def test_batch_gradients_average_to_the_gradient() -> None:
    problem, _, _ = family()
    w = point(problem)
    batches = np.random.default_rng(0).permutation(50).reshape(5, 10)
    mean = np.mean([problem.batch_gradient(w, b) for b in batches], axis=0)
    np.testing.assert_allclose(mean, problem.evaluate(w).gradient, **EXACT)


def test_sampled_curvature_is_unbiased() -> None:
    data = random_data(400, 4, 3, weighted=True)
    problem = data.problem(1e-2)
    w, v = point(problem, scale=0.5), point(problem, 1)
    at = problem.evaluate(w)
    exact = everything(problem, at.w).curvature(v)
    draws = 300
    samples = [Sample.draw(problem, at, 80, np.random.default_rng(i)) for i in range(draws)]
    mean = np.mean([s.curvature(v) for s in samples], axis=0)
    spread = np.std([s.curvature(v) for s in samples], axis=0) / draws**0.5
    assert (np.abs(mean - exact) <= 5 * spread).all()  # five standard errors
    total = np.array([float(s.weight.sum()) for s in samples])
    assert abs(total.mean() - 1.0) <= 5 * total.std() / draws**0.5
    sizes = np.array([len(s.index) for s in samples])
    assert abs(sizes.mean() - 80) <= 2  # the sampler stops within 1 % of the size
    assert all(len(np.unique(s.index)) == len(s.index) for s in samples)


def test_a_sample_of_all_rows_is_exact() -> None:
    problem, _, _ = family()
    at = problem.evaluate(point(problem))
    sample = Sample.draw(problem, at, problem.n, np.random.default_rng(0))
    assert sorted(sample.index) == list(range(problem.n))
    v = point(problem, 1)
    np.testing.assert_allclose(sample.curvature(v), everything(problem, at.w).curvature(v), **EXACT)
    np.testing.assert_allclose(sample.weight.sum(axis=1), 1.0, **EXACT)


def test_of_equal_logits_the_first_class_is_predicted(library: ModuleType) -> None:
    data = random_data(60, 3, 4)
    problem = data.problem(1.0, library)
    w = problem.constant_classifier() * 0.0
    np.testing.assert_allclose(problem.errors(w), [np.mean(data.y != 0)])
    bias = library.asarray([[0.0, 1.0, 1.0, 0.0]])
    tied = problem.join(problem.split(w)[0], bias)
    np.testing.assert_allclose(problem.errors(tied), [np.mean(data.y != 1)])
