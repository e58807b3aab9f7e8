"""What every rank checks of sums, evaluations and solvers: the numbers of one process."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count
from types import SimpleNamespace

import array_api_strict
import numpy as np
import pytest
import torch

import convexprobe
from convexprobe import SOLVERS, Status, fit_probes
from convexprobe.arrays.backend import generator, to_numpy
from convexprobe.arrays.ranks import Communicator, local
from convexprobe.problem.certificate import lower_bound
from convexprobe.problem.leading import leading
from convexprobe.problem.objective import Problem
from convexprobe.problem.preconditioners import Curvature, Diagonal
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers import LBFGS, SAGA, NewtonCG
from convexprobe.solvers.early_stopping import ValidationLoss
from convexprobe.solvers.leading_step import leading_step
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Solution
from convexprobe.solvers.starts import Previous, best_start, regressed, transferred
from tests.distributed.world import RANKS, Ranks, check, problems, same_bits, uneven
from tests.oracle import random_data
from tests.storage import Exhausted


def same_solution(found: Solution, communicator: Communicator) -> None:
    """Every rank has the same solution, to the last bit."""
    numbers = (found.w, found.objective, found.gap, found.passes)
    texts = [to_numpy(values).tobytes().hex() for values in numbers]
    communicator.check_same(status=found.status, numbers=texts)


@check
def sums_keep_library_shape_and_dtype(ranks: Ranks) -> None:
    communicator = ranks.world
    made = [
        np.full((2, 3), 1.5, np.float32), torch.tensor(2.5), torch.ones(2, dtype=torch.bfloat16),
        array_api_strict.asarray([1.0, 2.0]), np.asarray(3), np.zeros((0, 2)),
    ]  # fmt: skip
    made[0].setflags(write=False)
    for before, after in zip(made, communicator.all_reduce(*made), strict=True):
        assert type(after) is type(before) and after.dtype == before.dtype
        np.testing.assert_array_equal(to_numpy(after), RANKS * to_numpy(before))
    rank = communicator.rank
    own, rows = communicator.span(rank)
    assert (own, rows) == (slice(rank * (rank - 1) // 2, rank * (rank + 1) // 2), 6)
    whole = communicator.all_gather(torch.full((rank, 2), float(rank)))
    assert whole[:, 0].tolist() == [1, 2, 2, 3, 3, 3] and whole.dtype == torch.float32
    assert communicator.texts("é" * rank) == ["", "é", "éé", "ééé"]
    assert communicator.clock(rank + 7.0) == 7.0
    assert local(np.asarray([5, 0, 3]), own).tolist() == [[], [0], [], [2, 0]][rank]


@check
def ranks_that_keep_no_logits_find_the_optimum_of_one_process(ranks: Ranks) -> None:
    ours, alone = problems(random_data(230, 6, 3, weighted=True), [0.01, 0.1], ranks.world)
    ours.kept_columns = 0
    found, expected = (solve(p, LBFGS(), tol=1e-5) for p in (ours, alone))
    assert set(found.status) == {Status.CERTIFIED}
    assert (np.abs(found.objective - expected.objective) <= found.gap + expected.gap).all()


@check
def an_evaluation_is_that_of_all_rows(ranks: Ranks) -> None:
    data = random_data(230, 6, 3, weighted=True)
    for communicator in ranks.groups():
        for to in (np.asarray, torch.tensor, array_api_strict.asarray):
            ours, alone = problems(data, [0.01, 0.1], communicator, to)
            w = generator(1).standard_normal((2, ours.p))
            a, b = ours.evaluate(to(w), keep=True), alone.evaluate(to(w), keep=True)
            names = ("value", "loss", "gradient", "entropy", "rounding")
            pairs = [(getattr(a, n), getattr(b, n)) for n in names]
            pairs += [(lower_bound(ours, a), lower_bound(alone, b))]
            drawn = [Sample.draw(p, at, 60, generator(3)) for p, at in ((ours, a), (alone, b))]
            v = to(generator(2).standard_normal((2, ours.p)))
            pairs += [(drawn[0].curvature(v), drawn[1].curvature(v))]
            pairs += [(lower_bound(ours, a, drawn[0]), lower_bound(alone, b, drawn[1]))]
            for kind in (Diagonal(), Curvature(), Curvature(rank=4)):
                if to is not array_api_strict.asarray:
                    inverses = [kind.build(s).solve(v) for s in drawn]
                    pairs.append((inverses[0], inverses[1]))
            t = to(np.asarray([0.5, 2.0]))
            rays = (p.ray(at, v, p.logit_change(v))(t) for p, at in ((ours, a), (alone, b)))
            pairs += list(zip(*rays, strict=True))
            index = generator(4).permutation(230)[:50]
            pairs += [(ours.batch_gradient(to(w), index), alone.batch_gradient(to(w), index))]
            first, logits = (
                generator(5).standard_normal(shape) for shape in ((2, ours.p), (2, 3, 230))
            )
            mine, rows = first * (1 + communicator.rank), np.arange(ours.rows.n)  # rank 0's counts
            starts = [
                best_start(ours, Previous(to(mine), to(logits[:, :, ours.own]), rows), rows=90),
                best_start(alone, Previous(to(first), to(logits), np.arange(230)), rows=90),
            ]
            assert starts[0].names == starts[1].names
            pairs += [(starts[0].w, starts[1].w)]
            for x, y in pairs:
                np.testing.assert_allclose(to_numpy(x), to_numpy(y), rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(ours.errors(to(w)), alone.errors(to(w)), rtol=1e-12)
            assert ours.passes == pytest.approx(alone.passes, rel=1e-12)
            # The draw is the one of a single process, dealt out.
            mine = np.sort(drawn[1].index[drawn[0].own])
            np.testing.assert_array_equal(drawn[0].index + ours.own.start, mine)


@check
def every_solver_takes_the_iterates_of_one_process(ranks: Ranks) -> None:
    data = random_data(120, 4, 3, seed=1)
    for communicator in ranks.groups():
        some = ("newton-cg", "lbfgs") if communicator is ranks.pair else tuple(SOLVERS)
        for name in some:
            ours, alone = problems(data, 0.01, communicator)
            budget = 4 if name in ("adam", "rmsprop") else 100
            a = solve(ours, SOLVERS[name](), max_passes=budget)
            same_solution(a, communicator)
            if communicator.rank > 0:  # one oracle is enough for what is the same everywhere
                continue
            b = solve(alone, SOLVERS[name](), max_passes=budget)
            assert a.status == b.status, name
            if name not in ("adam", "rmsprop"):
                assert a.status == (Status.CERTIFIED,), name
            if name in ("newton-cg", "lbfgs"):
                np.testing.assert_allclose(a.passes, b.passes, rtol=1e-9)
                np.testing.assert_allclose(to_numpy(a.w), to_numpy(b.w), rtol=1e-6)
            # Stochastic ones too, but over their many steps rounding grows.
            np.testing.assert_allclose(a.objective, b.objective, rtol=1e-3, err_msg=name)


@check
def samples_smaller_than_the_rows(ranks: Ranks) -> None:
    data = random_data(2000, 30, 3, seed=2, weighted=True)
    solvers = [NewtonCG(rows=200), LBFGS(Curvature(rank=16), rows=200), SAGA(rows=200, epochs=1)]
    for solver in solvers:
        ours, alone = problems(data, [0.03, 0.1], ranks.world, torch.tensor)
        a = solve(ours, solver)
        same_solution(a, ranks.world)
        if ranks.world.rank > 0:
            continue
        b = solve(alone, solver)
        assert a.status == b.status == (Status.CERTIFIED,) * 2
        # Rounding decides one inner iteration more or less, and both stop within tol.
        np.testing.assert_allclose(a.passes, b.passes, rtol=0.02)
        np.testing.assert_allclose(a.objective, b.objective, rtol=1e-3)


@check
def a_pass_that_one_rank_reads_again_is_summed_once(ranks: Ranks) -> None:
    """Rank 1's device has less and less room; the others send one message for one of its own."""
    data = random_data(300, 5, 3, seed=12, weighted=True)
    ours, alone = problems(data, [0.01, 0.1], ranks.world, torch.tensor)
    w = torch.tensor(generator(1).standard_normal((2, ours.p)))
    found = []
    for problem in (ours, alone):
        device = Exhausted(problem.rows.blocks, 64)
        if ranks.world.rank == 1 and problem is ours:
            problem.rows.blocks = device  # type: ignore[method-assign]  # the fault
        problem = Problem(problem.rows, problem.labels, problem.host_l2, classes=3,
                          weights=problem.weights, communicator=problem.communicator)  # fmt: skip
        device.most = 32
        at = problem.evaluate(w)
        device.most = 16
        errors = problem.errors(w)
        device.most = 8
        loss = ValidationLoss(problem, problem.rows, problem.labels, None)(w)
        found.append((problem.moment, at.value, at.gradient, errors, loss, problem.passes))
        refused = device.refused
        assert (refused >= 4) == (ranks.world.rank == 1 and problem.communicator is ranks.world)
    for x, y in zip(*found, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10)


@check
def one_eigendecomposition_serves_many_tasks(ranks: Ranks) -> None:
    data = random_data(230, 6, 3, seed=13)
    for rank in (1024, 4):
        found = []
        for problem in problems(data, np.geomspace(1e-3, 1.0, Curvature().tasks + 1), ranks.world):
            w = generator(1).standard_normal((problem.m, problem.p))
            sample = Sample.draw(problem, problem.evaluate(w), 60, generator(3))
            found.append(Curvature(rank).build(sample).solve(w))
        np.testing.assert_allclose(found[0], found[1], rtol=1e-8, atol=1e-12)


@check
def a_rank_may_remember_fewer_of_its_rows(ranks: Ranks) -> None:
    """Every row is there twice; rank 1 remembers one of the two, and the transfer is the same."""
    data = random_data(160, 5, 3, seed=14)
    twice = replace(data, x=np.repeat(data.x, 2, axis=0), y=np.repeat(data.y, 2))
    logits = np.repeat(generator(2).standard_normal((1, 3, 160)), 2, axis=2)
    found = []
    for problem in problems(twice, [0.01], ranks.world):
        few = ranks.world.rank == 1 and problem.communicator is ranks.world
        rows = np.arange(0, problem.rows.n, 2 if few else 1)
        old = logits[:, :, problem.own][:, :, rows]
        found.append(transferred(problem, problem.constant_classifier(), old, rows)[0])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-8)


@check
def leading_directions_and_regressions_are_those_of_one_process(ranks: Ranks) -> None:
    data = random_data(1600, 256, 64, seed=15)
    logits = generator(2).standard_normal((1, 64, 1600))
    found = []
    for problem in problems(data, [0.01], ranks.world):
        w = 0.01 * generator(1).standard_normal((1, problem.p))
        top, at = leading(problem), problem.evaluate(w, keep=True)
        step = leading_step(problem, top, at.w, np.array(at.logits))
        rows = np.arange(0, problem.rows.n)
        moved, inverse = regressed(problem, w, logits[:, :, problem.own], rows)
        assert inverse is not None
        found.append([top.basis @ top.basis.T, step, moved, inverse.solve(w)])
    for x, y in zip(*found, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8)


@check
def budgets_are_spent_together(ranks: Ranks) -> None:
    data = random_data(300, 5, 3, seed=7)
    own = uneven(300, ranks.world)
    call = partial(
        fit_probes, data.x[own], data.y[own], "lbfgs", l2=1e-4, tol=1e-9, process_group="world"
    )
    for budget, status in (({"max_seconds": 1e-9}, Status.MAX_SECONDS),
                           ({"max_passes": 3}, Status.MAX_PASSES)):  # fmt: skip
        probes = call(**budget)
        same_bits(probes, ranks.world)
        assert probes["activations"].status is status
    # Rank 0's clock decides: the others' would never have stopped.
    ours, _ = problems(data, 1e-4, ranks.world)
    clock = SimpleNamespace(perf_counter=count().__next__ if not ranks.world.rank else lambda: 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convexprobe.solvers.loop, "time", clock)
        assert solve(ours, LBFGS(), tol=1e-9, max_seconds=0.5).status == (Status.MAX_SECONDS,)
