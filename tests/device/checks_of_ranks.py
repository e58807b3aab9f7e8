"""Two ranks over Gloo whose rows are on the device: messages go through the host, rows do not."""

from __future__ import annotations

import json
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import convexprobe as cxp
from tests.device.simulated import NAME, DeviceTensor, register
from tests.distributed.world import spawn
from tests.oracle import random_data


def fitted(group: str | None, rows: slice) -> cxp.Probe:
    """The probe of these rows, at the better of two penalties."""
    data = random_data(4000, 5, 3)
    x, y = torch.tensor(data.x[rows]).to(NAME), torch.tensor(data.y[rows])
    return cxp.fit_probes({"a": x}, y, l2=[1e-3, 1e-1], process_group=group)["a"]


def one_rank(rank: int, folder: str) -> None:
    """Fit over ranks, and write what went wrong."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    register()
    error = ""
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank,
                                world_size=2, timeout=timedelta(seconds=30))  # fmt: skip
        probe = fitted("world", (slice(0, 1500), slice(1500, 4000))[rank])
        alone = fitted(None, slice(None))
        assert type(probe.weights) is DeviceTensor
        assert probe.status == alone.status and probe.l2 == alone.l2
        assert abs(probe.objective - alone.objective) <= max(probe.gap, alone.gap)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        error = traceback.format_exc()
    Path(folder, f"{rank}.json").write_text(json.dumps(error))


def test_ranks_with_rows_on_the_device_fit_one_probe(tmp_path: Path) -> None:
    assert spawn(one_rank, 2, str(tmp_path)) == [0, 0]
    for rank in range(2):
        error = json.loads((tmp_path / f"{rank}.json").read_text())
        assert not error, f"rank {rank}\n{error}"
