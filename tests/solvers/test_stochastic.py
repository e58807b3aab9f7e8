"""The stochastic solvers: what a stage is made of, exactly, and what it reaches."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.objective import Problem
from convexprobe.problem.preconditioners import Curvature, Identity
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers import SAG, SAGA, SVRG, Adam, Katyusha, RMSprop
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Status
from convexprobe.solvers.stochastic import BATCH, VarianceReduced, cut, largest_curvature
from tests.oracle import Data, dense_hessian, minimum, random_data, reference

STAGED: dict[str, type[VarianceReduced]] = {
    "sag": SAG,
    "saga": SAGA,
    "svrg": SVRG,
    "katyusha": Katyusha,
}


def whole_sample(problem: Problem, w: Any) -> Sample:
    """All rows, at `w`."""
    return Sample.draw(problem, problem.evaluate(w), problem.n, np.random.default_rng(0))


def point(problem: Problem, seed: int = 0) -> Any:
    return 0.3 * np.random.default_rng(seed).standard_normal((problem.m, problem.p))


def test_batches_share_the_rows_and_their_changes_add_up_to_the_change_of_gradient() -> None:
    problem = random_data(300, 4, 3, weighted=True).problem([1e-2, 1.0])
    v, w = point(problem), point(problem, 1)
    batches = cut(whole_sample(problem, v), np.random.default_rng(0))
    assert sum(b.x.shape[0] for b in batches) == 300 and len(batches) >= 32
    total = sum(b.change(b.probabilities(w)) for b in batches)
    before, after = problem.evaluate(v), problem.evaluate(w)
    exact = after.gradient - before.gradient - problem.penalty(w) + problem.penalty(v)
    np.testing.assert_allclose(total, exact, rtol=1e-10, atol=1e-12)


def test_a_large_sample_is_cut_into_batches_of_a_few_hundred_rows() -> None:
    problem = random_data(10_000, 2, 2).problem(1e-2)
    sizes = [
        b.x.shape[0] for b in cut(whole_sample(problem, point(problem)), np.random.default_rng(0))
    ]
    assert max(sizes) <= BATCH and min(sizes) >= BATCH // 2


def test_the_smoothness_is_the_largest_eigenvalue() -> None:
    data, l2 = random_data(200, 4, 3), 1e-2
    problem = data.problem(l2)
    w = point(problem)
    one = replace(cut(whole_sample(problem, w), np.random.default_rng(0))[0])
    sample = whole_sample(problem, w)
    one = replace(one, x=sample.x, table=sample.p, weight=sample.weight)  # a batch of all rows
    hessian = dense_hessian(data, reference(data, w[0], l2)[2], l2)
    exact = np.linalg.eigvalsh(hessian)[-1]
    found = largest_curvature([one], Identity().build(sample), np.random.default_rng(0))[0]
    assert 0.9 * exact <= found <= exact * (1 + 1e-9)  # a Rayleigh quotient never exceeds it
    inverse = Curvature().build(sample)
    found = largest_curvature([one], inverse, np.random.default_rng(0))[0]
    columns = np.concatenate([inverse.solve(e[None, :]) for e in np.eye(problem.p)])
    exact = np.linalg.eigvals(columns @ hessian).real.max()
    assert 0.9 * exact <= found <= exact * (1 + 1e-9)


@pytest.mark.parametrize("name", STAGED)
def test_the_optimum_stays_put(name: str, library: ModuleType) -> None:
    # At the optimum every estimate is exact at first, so that a stage must not lose it.
    data, l2 = random_data(200, 4, 3), 1e-2
    w, best = minimum(data, l2)
    problem = data.problem(l2, library)
    solver = STAGED[name]()
    state = solver.init(problem, library.asarray(w[None, :]))
    new, state = solver.step(problem, state.at.w, state)
    assert abs(float(state.at.value[0]) - best) < 1e-12
    np.testing.assert_allclose(to_numpy(new)[0], w, atol=1e-5)


@pytest.mark.parametrize("plain", [False, True], ids=["preconditioned", "plain"])
@pytest.mark.parametrize("name", STAGED)
def test_a_family_is_certified(name: str, plain: bool, library: ModuleType) -> None:
    data, path = random_data(300, 5, 3, weighted=True), [1.0, 1e-2]
    solver = STAGED[name](Identity() if plain else Curvature())
    solution = solve(data.problem(path, library), solver, tol=1e-3, max_passes=400)
    assert solution.status == (Status.CERTIFIED,) * 2
    for t, l2 in enumerate(path):
        assert -1e-10 <= solution.objective[t] - minimum(data, l2)[1] <= solution.gap[t]


def hard() -> Data:
    """Features of condition 1e6."""
    data = random_data(2000, 20, 4)
    mix = np.linalg.qr(np.random.default_rng(1).standard_normal((20, 20)))[0]
    return Data(data.x @ np.diag(np.logspace(0, -3, 20)) @ mix, data.y, 4)


@pytest.mark.parametrize("name", STAGED)
def test_the_preconditioner_is_what_makes_them_fast(name: str) -> None:
    data, tol = hard(), 1e-2
    fast = solve(data.problem(1e-5), STAGED[name](), tol=tol, max_passes=200)
    assert fast.status == (Status.CERTIFIED,)
    budget = float(fast.passes[0])
    slow = solve(data.problem(1e-5), STAGED[name](Identity()), tol=tol, max_passes=budget)
    assert slow.status == (Status.MAX_PASSES,) and slow.gap[0] > 2 * fast.gap[0]


@pytest.mark.parametrize("name", STAGED)
def test_no_stage_raises_the_objective(name: str) -> None:
    values: list[float] = []
    solve(
        random_data(400, 6, 3).problem(1e-4),
        STAGED[name](Identity(), epochs=6),
        tol=1e-9,
        max_passes=60,
        callbacks=[lambda record: values.append(float(record.objective[0]))],
    )
    assert len(values) > 3 and (np.diff(values) <= 1e-12).all()


def test_loopless_stages_have_random_lengths_of_the_right_mean() -> None:
    solver = SVRG(loopless=True, epochs=2)
    lengths = [len(solver.order(40, np.random.default_rng(i))) for i in range(2000)]
    assert min(lengths) < 20 and max(lengths) > 200
    assert np.mean(lengths) == pytest.approx(80, rel=0.1)
    data = random_data(400, 5, 3)
    solution = solve(data.problem(1e-2), solver, tol=1e-3, max_passes=300)
    assert solution.status == (Status.CERTIFIED,)


@pytest.mark.parametrize("batch", [64, None])
@pytest.mark.parametrize("solver", [Adam, RMSprop])
def test_adaptive_updates_are_the_textbook_s(solver: Any, batch: int | None) -> None:
    data, l2 = random_data(256, 3, 3), 1e-2
    problem = data.problem(l2)
    algorithm = solver(batch=batch)
    state = algorithm.init(problem, point(problem))
    scale = torch.tensor(state.scale[0])
    w = torch.tensor(state.at.w[0], requires_grad=True)
    if solver is Adam:
        optimiser: Any = torch.optim.Adam([w], lr=0.3, eps=1e-12)
    else:
        optimiser = torch.optim.RMSprop([w], lr=0.3, alpha=0.9, eps=1e-12)
    new, after = algorithm.step(problem, state.at.w, state)
    x, y = torch.tensor(data.x), torch.tensor(data.y)
    rows = [None] if batch is None else algorithm._batches(256, 0)
    start = w.detach().clone()
    for i, at in enumerate(rows):
        # torch moves u in w = start + scale * u, the coordinates in which columns have unit size
        index = torch.arange(256) if at is None else torch.tensor(at)
        moved = start + scale * (w - start)
        weights, bias = moved[:9].reshape(3, 3), moved[9:]
        loss = torch.nn.functional.cross_entropy(x[index] @ weights.T + bias, y[index])
        loss = loss + 0.5 * l2 * weights.square().sum()
        optimiser.zero_grad()
        loss.backward()
        if solver is RMSprop and i == 0:
            optimiser.state[w] = {
                "step": torch.tensor(0.0),
                "square_avg": w.grad.square(),  # the mean of squares starts at the first
            }
        optimiser.step()
    expected = (start + scale * (w - start)).detach().numpy()
    np.testing.assert_allclose(new[0], expected, rtol=1e-6, atol=1e-9)
    fell = after.at.value[0] < state.at.value[0]
    assert after.rate[0] == pytest.approx(0.3 if fell else 0.15)


def test_the_rate_is_halved_when_an_epoch_did_not_help() -> None:
    data, l2 = random_data(200, 4, 3), 1e-2
    problem = data.problem([l2, l2])
    solver = Adam(batch=None, rate=0.1)
    state = solver.init(problem, np.stack([minimum(data, l2)[0], problem.constant_classifier()[1]]))
    _, after = solver.step(problem, state.at.w, state)
    np.testing.assert_allclose(after.rate, [0.05, 0.1])
