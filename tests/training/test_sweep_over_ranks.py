"""A sweep whose rows are dealt out over ranks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

import convexprobe as cxp
from tests.distributed.world import TIMEOUT, agree, spawn
from tests.tiny import checkpoints, network, rows


def sweep(rank: int, folder: str, store: str, dies: bool) -> None:
    """One of two ranks; rank 1 may kill itself before the third of five checkpoints."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/{store}", rank=rank,
                            world_size=2, timeout=TIMEOUT)  # fmt: skip
    part = cxp.shard(range(150), f"{rank}/2")
    x, y = (values[part.start : part.stop] for values in rows())

    def steps() -> Iterator[tuple[int, Any]]:
        for step, state in checkpoints():
            if step == 6 and rank == 1 and dies:
                os.kill(os.getpid(), signal.SIGKILL)
            yield step, state

    cxp.probe_checkpoints(
        network(7), steps(), x, y, out=folder, l2=1e-2, process_group="world", progress=False
    )
    dist.destroy_process_group()


def test_a_sweep_over_ranks_goes_on_after_a_kill(tmp_path: Path) -> None:
    """The other rank ends with an error, so that whoever started the ranks starts them again, as
    torchrun does; what both had recorded is kept, the rest is done."""
    first_code, killed = spawn(sweep, 2, str(tmp_path), "first", True)
    assert first_code > 0 and killed == -signal.SIGKILL
    entry = tmp_path / "rank_1_of_2" / "step_3.json"
    before = entry.read_bytes()
    assert spawn(sweep, 2, str(tmp_path), "second", False) == [0, 0]
    assert entry.read_bytes() == before  # with the times it took at first
    alone = cxp.probe_checkpoints(network(7), checkpoints(), *rows(), l2=1e-2)
    for step in (entry.step for entry in alone.entries):
        found = [tmp_path / f"rank_{rank}_of_2" / f"step_{step}.safetensors" for rank in (0, 1)]
        first, second = map(cxp.load_probes, found)
        assert str(first) == str(second)
        for name, probe in first.items():
            np.testing.assert_array_equal(probe.weights, second[name].weights)
        agree(first, alone[step])
