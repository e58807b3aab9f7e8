"""What every rank checks of messages: ranks that disagree or fail say so at once, on every rank."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from convexprobe import Status, fit_probes
from convexprobe.activations.source import Rows
from convexprobe.arrays.ranks import Communicator, LostRankError
from convexprobe.problem.objective import Problem
from convexprobe.solvers import LBFGS, solve
from tests.distributed.world import RANKS, TIMEOUT, Ranks, Streamed, check, part, uneven
from tests.oracle import random_data


@contextmanager
def refused(ranks: Ranks, kind: type[Exception], match: str) -> Iterator[None]:
    """Every rank raises this within a moment, and the next message is understood by all."""
    started = time.monotonic()
    with pytest.raises(kind, match=match) as caught:
        yield
    assert type(caught.value) is kind and time.monotonic() - started < TIMEOUT.seconds / 4
    assert ranks.world.texts(str(ranks.world.rank)) == [str(rank) for rank in range(RANKS)]


@check
def a_rank_that_fails_in_the_middle_of_a_fit_stops_the_others_at_once(ranks: Ranks) -> None:
    data = random_data(400, 5, 3, seed=21)
    own, rank = uneven(400, ranks.world), ranks.world.rank
    x, y = torch.tensor(data.x[own]), data.y[own]
    for error, kind in (
        (ValueError("'7.safetensors': torn"), ValueError), (OSError("the disk is gone"), OSError),
        (MemoryError("no room"), RuntimeError), (KeyError("name"), RuntimeError),
    ):  # fmt: skip
        for passes in (0, 3, 7):
            rows = Streamed(x, passes, error) if rank == 1 else x
            match = f"rank 1: {str(error)[:8]}"
            with refused(ranks, kind, match):
                fit_probes({"h": rows}, y, l2=[1e-3, 1e-5], tol=1e-6, memory_limit=1.0,
                           process_group="world")  # fmt: skip
    probes = fit_probes({"h": x}, y, l2=0.1, process_group="world")
    for error in (ValueError("torn"), ZeroDivisionError("strange")):
        rows = Streamed(x, 0, error) if rank == 1 else x
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        with refused(ranks, kind, f"rank 1: {error}"):
            probes.evaluate({"h": rows}, y, "world")


class Slow(Rows):
    """Rows whose fourth pass takes far longer than any rank may wait; on one rank it fails."""

    passes, error = 0, None

    def blocks(self, *args: Any, **settings: Any) -> Iterator[tuple[slice, Any]]:
        self.passes += 1
        for at, block in enumerate(super().blocks(*args, **settings)):
            if self.passes == 4 and at == 2 and self.error is not None:
                raise self.error
            if self.passes == 4:
                time.sleep(0.1)
            yield block


@check
def an_error_in_a_pass_ends_the_long_passes_of_the_others(ranks: Ranks) -> None:
    data = part(random_data(800, 5, 3, seed=23), uneven(800, ranks.world, (0, 1, 4, 4)))
    rows = Slow(data.x, most_rows=1)  # a pass of rank 2 would take half a minute
    if ranks.world.rank == 1:
        rows.error = ValueError("'7.safetensors': torn")
    problem = Problem(rows, data.y, 1e-4, classes=3, communicator=ranks.world)
    with refused(ranks, ValueError, "rank 1: '7.safetensors': torn"):
        solve(problem, LBFGS(), tol=1e-9)
    rows.passes = 5
    assert solve(problem, LBFGS()).status == (Status.CERTIFIED,)  # all go on


@check
def a_rank_that_cannot_send_its_error_stops_those_that_wait(ranks: Ranks) -> None:
    """It is interrupted, or its device is broken; nobody waits for the group's timeout."""

    def broken(*args: Any, **settings: Any) -> None:
        raise RuntimeError("the device is gone")

    cases: list[tuple[BaseException, type[BaseException], str, Any, str]] = [
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop", None, ""),
        (ValueError("torn"), LostRankError, "rank 1 of 4: .*the device is gone", dist,
         "all_reduce"),
        (ValueError("torn"), LostRankError, "rank 1 of 4: its error cannot be sent; .*torn",
         Communicator, "_device"),
    ]  # fmt: skip
    for error, raised, match, owner, name in cases:
        communicator = Communicator.of(dist.new_group(timeout=TIMEOUT))  # nobody can use it again
        failing = communicator.rank == 1
        if not failing:
            kept = "KeyboardInterrupt" if owner is None else "ValueError: torn"
            raised, match = LostRankError, f"another rank is gone; .*rank 1: {kept}"
        started = time.monotonic()
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(raised, match=match),
            communicator.raise_together(),
        ):
            communicator.counts(3)
            if failing:
                if owner is not None:
                    patch.setattr(owner, name, broken)
                raise error
            communicator.counts(4)
        assert time.monotonic() - started < TIMEOUT.seconds / 4


@check
def ranks_in_different_functions_are_named(ranks: Ranks) -> None:
    data = random_data(200, 4, 3, seed=22)
    own = uneven(200, ranks.world)
    x, y = torch.tensor(data.x[own]), data.y[own]
    probes = fit_probes({"h": x}, y, l2=0.1, process_group="world")
    with refused(
        ranks, RuntimeError, r"same calls .*rank 0: fit_probes .*rank 3: ProbeSet.evaluate"
    ):
        if ranks.world.rank < 3:
            fit_probes({"h": x}, y, l2=0.1, process_group="world")
        else:
            probes.evaluate({"h": x}, y, "world")
    with refused(ranks, RuntimeError, r"rank 0: ProbeSet.evaluate .*rank 2: fit_probes"):
        for _ in range(1 + (ranks.world.rank != 2)):  # rank 2 goes on before the others
            probes.evaluate({"h": x}, y, "world")
        fit_probes({"h": x}, y, l2=0.1, process_group="world")


@check
def sums_of_other_sizes_are_refused(ranks: Ranks) -> None:
    rank = ranks.world.rank
    for sizes in ((3, 4), (3, 4000), (4000, 3), (4000, 4001)):
        with refused(ranks, RuntimeError, rf"rank 0: .* {sizes[0]} numbers.*rank 3: .* {sizes[1]}"):
            ranks.world.all_reduce(np.ones(sizes[rank == 3]))
    for size in (0, 1, 62, 63, 64, 1000):
        found = ranks.world.all_reduce(np.arange(float(size)), torch.full((2,), np.nan))
        assert found[0].tolist() == (RANKS * np.arange(size)).tolist() and found[1].isnan().all()


@check
def an_error_in_a_block_that_sends_is_raised_once_by_all(ranks: Ranks) -> None:
    for failing in range(3):
        with (
            refused(ranks, ValueError, f"rank 2: at {failing}"),
            ranks.world.raise_together(),
            ranks.world.raise_together(),
        ):
            for step in range(3):
                if step == failing and ranks.world.rank == 2:
                    raise ValueError(f"at {failing}")
                ranks.world.counts(step)
    with refused(ranks, ValueError, "rank 0: by all"), ranks.world.raise_together():
        raise ValueError("by all")  # at once


@check
def arrays_that_differ_in_a_late_digit_are_not_the_same(ranks: Ranks) -> None:
    values = np.linspace(0.0, 1.0, 2000)
    ranks.world.check_same(l2=values, step=3)
    values[1000] += 1e-12 * (ranks.world.rank == 1)
    with refused(ranks, ValueError, "l2: expected the same on every rank, .* on rank 1"):
        ranks.world.check_same(step=3, l2=values)
    with refused(ranks, ValueError, "step: expected .* found 0 on rank 0 and 1 on rank 1"):
        ranks.world.check_same(step=ranks.world.rank)
