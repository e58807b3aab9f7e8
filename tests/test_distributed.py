"""Rows dealt out over ranks: the answer of one process, the same errors everywhere, no deadlock.

One world of four processes (Gloo, a file store) runs every check once; a test reads what each rank
says of its check. The oracle is the same call on all rows in one process.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Data, Exhausted, random_data
from tiny import checkpoints, network, rows
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import convexprobe
from convexprobe import SOLVERS, ProbeSet, Status, extract, fit_probes, remember, shard
from convexprobe._array import generator, to_numpy
from convexprobe.certificate import lower_bound
from convexprobe.communicator import ALONE, Communicator, local
from convexprobe.objective import Problem
from convexprobe.preconditioner import SPECTRAL, Curvature, Diagonal
from convexprobe.sample import Sample
from convexprobe.solve import Record, solve
from convexprobe.solvers import LBFGS, SAGA, NewtonCG
from convexprobe.sources import Rows
from convexprobe.store import HostStore
from convexprobe.validation import ValidationLoss
from convexprobe.warm_start import Previous, best_start, transferred

RANKS = 4
TIMEOUT = timedelta(seconds=20)


@dataclass(frozen=True)
class Ranks:
    """Where a check runs: this process in the world of four, and a pair made of ranks 0 and 1."""

    world: Communicator
    pair: Communicator | None

    def groups(self) -> Iterator[Communicator]:
        """Every group that this process is in."""
        yield self.world
        if self.pair is not None:
            yield self.pair


CHECKS: dict[str, Callable[[Ranks], None]] = {}


def check(function: Callable[..., None]) -> Callable[..., None]:
    """Run by every rank of the world."""
    CHECKS[function.__name__] = function
    return function


def uneven(n: int, communicator: Communicator, shares: tuple[int, ...] = (0, 5, 2, 1)) -> slice:
    """This rank's rows of `n`, dealt out in these shares: by default rank 0 has none."""
    edges = np.cumsum((0, *shares[: communicator.size]))
    edges = edges * n // edges[-1]
    return slice(int(edges[communicator.rank]), int(edges[communicator.rank + 1]))


def part(data: Data, own: slice) -> Data:
    weights = None if data.weights is None else data.weights[own]
    return replace(data, x=data.x[own], y=data.y[own], weights=weights)


def problems(
    data: Data, l2: Any, communicator: Communicator, to: Callable[[Any], Any] = np.asarray
) -> tuple[Problem, Problem]:
    """The problem over ranks and that of one process."""
    found = []
    for own, ranks in ((part(data, uneven(len(data.y), communicator)), communicator),
                        (data, ALONE)):  # fmt: skip
        weights = None if own.weights is None else to(own.weights)
        found.append(Problem(Rows(to(own.x)), to(own.y), l2, classes=data.k, weights=weights,
                             communicator=ranks))  # fmt: skip
    return found[0], found[1]


def same_bits(probes: ProbeSet, communicator: Communicator) -> None:
    """Every rank has the same probes, to the last bit."""
    for name, probe in probes.items():
        for field in fields(probe):
            value = getattr(probe, field.name)
            text = to_numpy(value).tobytes().hex() if field.name in ("weights", "bias") else value
            communicator.same(**{f"{name}.{field.name}": text})


def agree(ours: ProbeSet, theirs: ProbeSet) -> None:
    """Both stand within their gaps of one optimum, and ended in the same way at the same choices.

    Not the same digits: rounding may decide an inner iteration, and then both stop elsewhere.
    """
    assert list(ours) == list(theirs)
    for name, probe in ours.items():
        other = theirs[name]
        assert (probe.classes, probe.status) == (other.classes, other.status)
        assert abs(probe.objective - other.objective) <= max(probe.gap, other.gap)
        np.testing.assert_allclose(probe.rows, other.rows, rtol=1e-6)
        np.testing.assert_allclose(probe.l2, other.l2, rtol=1e-6)
        np.testing.assert_allclose(probe.train_error, other.train_error, atol=0.02)
        assert (probe.validation_error is None) == (other.validation_error is None)
        if probe.validation_error is not None:
            np.testing.assert_allclose(probe.validation_error, other.validation_error, atol=0.02)


@check
def sums_keep_library_shape_and_dtype(ranks: Ranks) -> None:
    communicator = ranks.world
    made = [
        np.full((2, 3), 1.5, np.float32), torch.tensor(2.5), torch.ones(2, dtype=torch.bfloat16),
        array_api_strict.asarray([1.0, 2.0]), np.asarray(3), np.zeros((0, 2)),
    ]  # fmt: skip
    made[0].setflags(write=False)
    for before, after in zip(made, communicator.sum(*made), strict=True):
        assert type(after) is type(before) and after.dtype == before.dtype
        np.testing.assert_array_equal(to_numpy(after), RANKS * to_numpy(before))
    rank = communicator.rank
    own, rows = communicator.span(rank)
    assert (own, rows) == (slice(rank * (rank - 1) // 2, rank * (rank + 1) // 2), 6)
    whole = communicator.stack(torch.full((rank, 2), float(rank)))
    assert whole[:, 0].tolist() == [1, 2, 2, 3, 3, 3] and whole.dtype == torch.float32
    assert communicator.texts("é" * rank) == ["", "é", "éé", "ééé"]
    assert communicator.clock(rank + 7.0) == 7.0
    assert local(np.asarray([5, 0, 3]), own).tolist() == [[], [0], [], [2, 0]][rank]


@check
def an_evaluation_is_that_of_all_rows(ranks: Ranks) -> None:
    data = random_data(230, 6, 3, weighted=True)
    for communicator in ranks.groups():
        for to in (np.asarray, torch.tensor, array_api_strict.asarray):
            ours, alone = problems(data, [0.01, 0.1], communicator, to)
            w = generator(1).standard_normal((2, ours.p))
            a, b = ours.evaluate(to(w), keep=True), alone.evaluate(to(w), keep=True)
            names = ("value", "loss", "gradient", "entropy", "prior", "rounding")
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
            pairs += list(zip(ours.along(a, v, ours.spread(v), t),
                              alone.along(b, v, alone.spread(v), t), strict=True))  # fmt: skip
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
            a, b = (solve(p, SOLVERS[name](), max_passes=budget) for p in (ours, alone))
            assert a.status == b.status, name
            if name not in ("adam", "rmsprop"):
                assert a.status == (Status.CERTIFIED,), name
            if name in ("newton-cg", "lbfgs"):
                np.testing.assert_allclose(a.passes, b.passes, rtol=1e-9)
                np.testing.assert_allclose(to_numpy(a.w), to_numpy(b.w), rtol=1e-6)
            # Stochastic ones too, but over their many steps rounding grows.
            np.testing.assert_allclose(a.value, b.value, rtol=1e-3, err_msg=name)


@check
def samples_smaller_than_the_rows(ranks: Ranks) -> None:
    data = random_data(2000, 30, 3, seed=2, weighted=True)
    solvers = [NewtonCG(rows=200), LBFGS(Curvature(rank=16), rows=200), SAGA(rows=200, epochs=1)]
    for solver in solvers:
        ours, alone = problems(data, [0.03, 0.1], ranks.world, torch.tensor)
        a, b = (solve(p, solver) for p in (ours, alone))
        assert a.status == b.status == (Status.CERTIFIED,) * 2
        # Rounding decides one inner iteration more or less, and both stop within tol.
        np.testing.assert_allclose(a.passes, b.passes, rtol=0.02)
        np.testing.assert_allclose(a.value, b.value, rtol=1e-3)
        ranks.world.same(w=a.w.numpy().tobytes().hex())


@check
def fit_probes_returns_the_probes_of_one_process(ranks: Ranks) -> None:
    """String labels, a class on one rank alone, weights, l2="auto" with rows held out."""
    data = random_data(500, 6, 4, seed=3, weighted=True)
    order = np.argsort(data.y == 3, kind="stable")  # the last class on the last rank
    x, y, s = data.x[order], np.asarray(["a", "bb", "c", "dddd"])[data.y[order]], data.weights
    communicator = ranks.world
    own = uneven(500, communicator)
    layers = {"one": x, "two": torch.tensor(x[:, :3])}
    mine = {name: layer[own] for name, layer in layers.items()}
    ours = fit_probes(mine, y[own], sample_weight=s[own], group=communicator.group)
    same_bits(ours, communicator)
    agree(ours, fit_probes(layers, y, sample_weight=s))
    again = fit_probes(
        mine, y[own], sample_weight=s[own], l2=ours["one"].l2, warm_start=ours,
        group=communicator.group,
    )  # fmt: skip
    agree(again, fit_probes(layers, y, sample_weight=s, l2=ours["one"].l2))
    moved = {name: layer + 0.1 for name, layer in mine.items()}
    later = fit_probes(
        moved, y[own], sample_weight=s[own], l2=0.01, warm_start=remember(ours, mine),
        group=communicator.group,
    )  # fmt: skip
    same_bits(later, communicator)
    agree(later, fit_probes(layers, y, sample_weight=s, l2=0.01))
    score = ours.evaluate(mine, y[own], communicator.group)["one"]
    alone = ours.evaluate(layers, y)["one"]
    assert score.rows == 500 and score.error == alone.error
    np.testing.assert_allclose(score.loss, alone.loss, rtol=1e-12)


@check
def families_folds_and_validation(ranks: Ranks) -> None:
    data = random_data(400, 5, 3, seed=4)
    held = random_data(90, 5, 3, seed=5)
    own, seen = uneven(400, ranks.world), uneven(90, ranks.world, (3, 0, 1, 2))
    x, y = torch.tensor(data.x), data.y
    fit = partial(fit_probes, group="world")
    agree(fit(x[own], y[own], cv=3), fit_probes(x, y, cv=3))
    concepts = {"zero": y == 0, "class": y}
    mine = {name: values[own] for name, values in concepts.items()}
    path = [1e-3, 1e-2, 1e-1]
    agree(fit(x[own], mine, l2=path), fit_probes(x, concepts, l2=path))
    agree(
        fit(x[own], y[own], l2=path, validation=(torch.tensor(held.x[seen]), held.y[seen])),
        fit_probes(x, y, l2=path, validation=(torch.tensor(held.x), held.y)),
    )
    early = fit(x[own], mine, l2=path, stopping="validation")
    same_bits(early, ranks.world)
    agree(early, fit_probes(x, concepts, l2=path, stopping="validation"))


@check
def half_precision_rows(ranks: Ranks) -> None:
    data = random_data(700, 8, 3, seed=6)
    own = uneven(700, ranks.world)
    x = torch.tensor(data.x).half()
    probes = fit_probes(x[own], data.y[own], l2=0.01, group="world")
    same_bits(probes, ranks.world)
    agree(probes, fit_probes(x, data.y, l2=0.01))


@check
def streamed_rows(ranks: Ranks) -> None:
    """Rank 1 streams its rows in a limit that bounds the samples of all; the others hold theirs."""
    data = random_data(700, 8, 3, seed=11)
    own = uneven(700, ranks.world)
    x = torch.tensor(data.x[own])
    rows, limit = (HostStore(x), 1.0) if ranks.world.rank == 1 else (x, None)
    probes = fit_probes({"h": rows}, data.y[own], memory_limit=limit, group="world")
    same_bits(probes, ranks.world)
    agree(probes, fit_probes({"h": data.x}, data.y))


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
        for problem in problems(data, np.geomspace(1e-3, 1.0, SPECTRAL + 1), ranks.world):
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
        found.append(transferred(problem, problem.origin(), old, rows)[0])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-8)


@check
def budgets_are_spent_together(ranks: Ranks) -> None:
    data = random_data(300, 5, 3, seed=7)
    own = uneven(300, ranks.world)
    call = partial(fit_probes, data.x[own], data.y[own], "lbfgs", l2=1e-4, tol=1e-9, group="world")
    for budget, status in (({"max_seconds": 1e-9}, Status.MAX_SECONDS),
                           ({"max_passes": 3}, Status.MAX_PASSES)):  # fmt: skip
        probes = call(**budget)
        same_bits(probes, ranks.world)
        assert probes["activations"].status is status
    # Rank 0's clock decides: the others' would never have stopped.
    ours, _ = problems(data, 1e-4, ranks.world)
    clock = SimpleNamespace(perf_counter=count().__next__ if not ranks.world.rank else lambda: 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convexprobe.solve, "time", clock)
        assert solve(ours, LBFGS(), tol=1e-9, max_seconds=0.5).status == (Status.MAX_SECONDS,)


@check
def a_bad_row_is_named_on_every_rank(ranks: Ranks) -> None:
    data = random_data(300, 5, 3, seed=8)
    own = uneven(300, ranks.world)
    x = data.x[own].copy()
    if ranks.world.rank == 2:
        x[7, 3] = np.nan
    for l2 in ("auto", 0.1):
        with pytest.raises(ValueError, match=r"rank 2: activations\['h'\]: .* nan in row 7, feat"):
            fit_probes({"h": x}, data.y[own], l2=l2, group="world")
    huge = np.full(data.x[own].shape, 1e308)
    with pytest.raises(ValueError, match=r"activations\['h'\]: values so large"):
        fit_probes({"h": huge}, data.y[own], l2=0.1, group="world")


@check
def input_refused_on_one_rank_is_refused_on_all(ranks: Ranks) -> None:
    data = random_data(300, 5, 3, seed=9)
    own, rank = uneven(300, ranks.world), ranks.world.rank
    x, y = data.x[own], data.y[own]
    odd = y.copy()
    if rank == 1:
        odd[4] = 9
    cases: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (ValueError, "rank 3: labels: expected", (x, y[: len(y) - (rank == 3)]), {}),
        (ValueError, "rank 1: labels: row 4 has class 9", (x, odd), {"classes": [0, 1, 2]}),
        (TypeError, "rank 2: activations.*dtype", (x.astype(complex) if rank == 2 else x, y), {}),
        (ValueError, "activations: expected the same .* on rank 1", (x[:, : 5 - (rank == 1)], y),
         {}),
        (ValueError, "l2: expected the same .* on rank 1", (x, y), {"l2": 0.1 * (1 + rank)}),
        (ValueError, "concepts: expected the same", (x, {f"c{rank}": y}), {}),
        (ValueError, "strings or numbers", (x, [(c,) for c in y.tolist()]), {}),
        (ValueError, "rank 3: sample_weight: .* in row 0", (x, y),
         {"sample_weight": np.full(len(y), -1.0 if rank == 3 else 1.0)}),
        (ValueError, "sample_weight: expected a positive", (x, y),
         {"sample_weight": np.zeros(len(y))}),
        (ValueError, "at least two classes", (x, 0 * y), {"l2": 0.1}),
        (ValueError, "rows on one rank", (x[:0], y[:0]), {}),
        (ValueError, "rank 1: validation", (x, y), {"validation": (x[:, : 5 - (rank == 1)], y)}),
    ]  # fmt: skip
    for error, pattern, args, options in cases:
        with pytest.raises(error, match=pattern):
            fit_probes(*args, **options, group="world")
    classes = [(0,), (1,), (2,)]
    probes = fit_probes(x, [(c,) for c in y.tolist()], l2=0.1, classes=classes, group="world")
    assert probes["activations"].classes == tuple(classes)
    with pytest.raises(TypeError, match="rank 0: activations"):
        probes.evaluate(None if rank == 0 else x, y, "world")


@check
def groups_are_checked(ranks: Ranks) -> None:
    x, y = np.ones((4, 2)), np.arange(4) % 2
    for group in ("all", 3, dist.GroupMember.NON_GROUP_MEMBER):
        with pytest.raises(ValueError, match="group: expected None"):
            fit_probes(x, y, group=group)


@check
def extraction_is_data_parallel(ranks: Ranks) -> None:
    """Each rank extracts a shard of the data set, and probes are those of all of it."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(130, 12, generator=generator), torch.arange(130) % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    data = TensorDataset(images, labels)
    mine = Subset(data, shard(range(130), f"{ranks.world.rank}/{RANKS}"))
    rows = extract(model, DataLoader(mine, batch_size=16))
    assert len(rows[1]) in (32, 33)
    whole = extract(model, DataLoader(data, batch_size=16))
    agree(fit_probes(*rows, l2=0.1, group="world"), fit_probes(*whole, l2=0.1))


def run_world(rank: int, folder: str) -> None:
    """One rank of the world: every check, what went wrong in each, by name."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank,
                            world_size=RANKS, timeout=TIMEOUT)  # fmt: skip
    pair = dist.new_group([0, 1], timeout=TIMEOUT)
    world = Communicator.of("world")
    ranks = Ranks(world, Communicator.of(pair) if rank < 2 else None)
    found = {}
    for name, function in CHECKS.items():
        try:
            function(ranks)
            found[name] = ""
        except BaseException:
            found[name] = traceback.format_exc()
        Path(folder, f"{rank}.json").write_text(json.dumps(found))
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What every rank says of every check."""
    folder = str(tmp_path_factory.mktemp("world"))
    spawn(run_world, RANKS, folder)
    texts = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(RANKS)]
    return {name: [t.get(name, "did not run") for t in texts] for name in CHECKS}


def spawn(function: Callable[..., None], ranks: int, *args: Any) -> list[int]:
    """Run `function(rank, *args)` in that many processes; their exit codes."""
    context = mp.get_context("spawn")
    processes = [context.Process(target=function, args=(rank, *args)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
        if process.is_alive():
            process.kill()
    return [int(process.exitcode or 0) for process in processes]


@pytest.mark.parametrize("name", CHECKS)
def test_over_ranks(name: str, found: dict[str, list[str]]) -> None:
    for rank, text in enumerate(found[name]):
        assert not text, f"rank {rank}\n{text}"


def killed(rank: int, folder: str) -> None:
    """A solve in which rank 1 kills itself after its second record; rank 0 writes what it saw."""

    def die(record: Record) -> None:
        if rank == 1 and record.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank,
                            world_size=2, timeout=TIMEOUT)  # fmt: skip
    ours, _ = problems(random_data(400, 5, 3), 1e-4, Communicator.of("world"))
    try:
        solve(ours, LBFGS(), tol=1e-9, callbacks=[die])
    except RuntimeError as error:
        Path(folder, "error").write_text(str(error))


def test_a_killed_rank_stops_the_others(tmp_path: Path) -> None:
    assert spawn(killed, 2, str(tmp_path))[1] == -signal.SIGKILL
    assert re.match("rank 0 of 2: another rank is gone", (tmp_path / "error").read_text())


SWEEP = """
    import os, shutil, signal, sys
    import torch.distributed as dist
    import convexprobe as cxp
    from tiny import checkpoints, network, rows

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    part = cxp.shard(range(150), f"{rank}/2")
    x, y = (values[part.start : part.stop] for values in rows())

    def steps():
        for step, state in checkpoints():
            if step == 6 and rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                shutil.copy(f"{sys.argv[1]}/rank_1_of_2/step_3.json", sys.argv[1] + "/before.json")
                os.kill(os.getpid(), signal.SIGKILL)
            yield step, state

    cxp.probe_checkpoints(
        network(7), steps(), x, y, out=sys.argv[1], l2=1e-2, group="world", progress=False
    )
    dist.destroy_process_group()
"""


def test_a_sweep_over_ranks_goes_on_after_a_kill(tmp_path: Path) -> None:
    """torchrun starts the ranks again; what both had recorded is kept, the rest is done."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SWEEP))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--max-restarts", "1", "--monitor-interval", "0.1", str(script), str(tmp_path),
    ]  # fmt: skip
    paths = os.pathsep.join(
        [str(Path(convexprobe.__file__).parents[1]), str(Path(__file__).parent)]
    )
    # A store of its own for every attempt: of a shared one, Gloo may read addresses of the dead.
    environment = {**os.environ, "PYTHONPATH": paths, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=150)
    assert done.returncode == 0, done.stderr
    kept = (tmp_path / "rank_1_of_2" / "step_3.json").read_bytes()
    assert kept == (tmp_path / "before.json").read_bytes()  # with the times it took at first
    alone = convexprobe.probe_checkpoints(network(7), checkpoints(), *rows(), l2=1e-2)
    for step in (entry.step for entry in alone.entries):
        found = [tmp_path / f"rank_{rank}_of_2" / f"step_{step}.safetensors" for rank in (0, 1)]
        first, second = map(convexprobe.load_probes, found)
        assert str(first) == str(second)
        for name, probe in first.items():
            np.testing.assert_array_equal(probe.weights, second[name].weights)
        agree(first, alone[step])


def test_alone_a_sum_is_its_own() -> None:
    array = np.arange(3)
    assert ALONE.sum(array)[0] is array and ALONE.stack(array) is array
    assert (ALONE.rank, ALONE.size, ALONE.span(5)) == (0, 1, (slice(0, 5), 5))
    with pytest.raises(ValueError, match="init_process_group"):
        fit_probes(np.ones((4, 2)), np.arange(4) % 2, group="world")


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_shards_are_stretches_that_cover_the_list(parts: int) -> None:
    for items in (list(range(7)), tuple("abc"), range(2, 30)):
        found = [shard(items, f"{i}/{parts}") for i in range(parts)]
        assert [x for part in found for x in part] == list(items)
        sizes = [len(part) for part in found]
        assert max(sizes) - min(sizes) <= 1 and {type(p) for p in found} == {type(items)}


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "1/2/3", "0/0", "0.5/2"])
def test_a_shard_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match='expected "i/n"'):
        shard([1, 2], text)
