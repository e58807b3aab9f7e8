"""Rows dealt out over ranks: the answer of one process, the same errors everywhere, no deadlock.

One world of four processes (Gloo, a file store) runs every check once; a test reads what each rank
says of its check. The oracle is the same call on all rows in one process.
"""

from __future__ import annotations

import json
import os
import re
import signal
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

# Importing these modules enters their checks in CHECKS.
import tests.distributed.checks_of_fits
import tests.distributed.checks_of_messages
import tests.distributed.checks_of_solves
import tests.distributed.checks_of_sweeps  # noqa: F401
from convexprobe.arrays.ranks import Communicator
from convexprobe.solvers import LBFGS
from convexprobe.solvers.loop import solve
from convexprobe.solvers.solution import Record
from tests.distributed.world import CHECKS, RANKS, TIMEOUT, Ranks, problems, spawn
from tests.oracle import random_data


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


@pytest.mark.xdist_group("world")  # one worker's, else each worker runs a world of its own
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
