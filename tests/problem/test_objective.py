"""The objective against its definition: finite differences, symmetries, precisions, libraries."""

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
from tests.problem.families import EXACT, everything, point


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


def test_of_equal_logits_the_first_class_is_predicted(library: ModuleType) -> None:
    data = random_data(60, 3, 4)
    problem = data.problem(1.0, library)
    w = problem.constant_classifier() * 0.0
    np.testing.assert_allclose(problem.errors(w), [np.mean(data.y != 0)])
    bias = library.asarray([[0.0, 1.0, 1.0, 0.0]])
    tied = problem.join(problem.split(w)[0], bias)
    np.testing.assert_allclose(problem.errors(tied), [np.mean(data.y != 1)])


@pytest.mark.parametrize("k", [2, 3])
def test_kept_logits_are_those_of_all_rows_at_once(k: int, library: ModuleType) -> None:
    data = random_data(120, 4, k)
    x = library.asarray(data.x)
    penalties = [1e-2, 1e-2]  # two tasks, whose logits lie one behind the other
    problem = Problem(Rows(x, 50), library.asarray(data.y), penalties, classes=k)
    w = library.asarray(point(problem))
    at = problem.evaluate(w, keep=True)
    expected = np.einsum("mkd,nd->mkn", to_numpy(problem.split(w)[0]), data.x)
    expected -= expected.mean(axis=1, keepdims=True)
    for found in (at.logits, problem.logit_change(w), problem.logits(w, x)):
        found = to_numpy(found) - to_numpy(problem.split(w)[1])[:, :, None] + 0.0
        np.testing.assert_allclose(found - found.mean(axis=1, keepdims=True), expected, **EXACT)
    bare = problem.evaluate(w)
    for name in ("value", "gradient", "entropy"):
        np.testing.assert_array_equal(to_numpy(getattr(at, name)), to_numpy(getattr(bare, name)))
    assert bare.logits is None


def test_an_evaluation_taken_over_is_that_at_the_other_penalties(library: ModuleType) -> None:
    data = random_data(120, 4, 3)
    base = data.problem(1.0, library)
    before = base.take_tasks([0, 0], np.array([1e-1, 3.0]))
    at = before.evaluate(library.asarray(point(before)), keep=True)
    after = base.take_tasks([0, 0], np.array([1e-2, 0.0]))
    w, spent = after.start_from(at, before), base.passes
    child = after.take_tasks([1, 0])
    taken = after.evaluate(w, keep=True)
    assert base.passes == spent
    fresh = after.evaluate(w, keep=True)  # it is taken once
    assert base.passes == spent + 1
    for name in ("value", "loss", "gradient", "entropy", "uncertainty", "rounding", "doubt"):
        found, expected = to_numpy(getattr(taken, name)), to_numpy(getattr(fresh, name))
        atol = 0.0 if name == "doubt" else 1e-15  # in float64 it is far below
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=atol)
    np.testing.assert_array_equal(to_numpy(taken.logits), to_numpy(fresh.logits))
    swapped = child.evaluate(w)
    assert to_numpy(swapped.value)[0] != to_numpy(fresh.value)[0]
