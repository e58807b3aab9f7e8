"""A sweep whose rows are dealt out over ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

import convexprobe
from tests.distributed.world import agree
from tests.tiny import checkpoints, network, rows

ROOT = Path(__file__).parents[2]
SWEEP = """
    import os, shutil, signal, sys
    import torch.distributed as dist
    import convexprobe as cxp
    from tests.tiny import checkpoints, network, rows

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
        network(7), steps(), x, y, out=sys.argv[1], l2=1e-2, process_group="world", progress=False
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
    # A store of its own for every attempt: of a shared one, Gloo may read addresses of the dead.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
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
