"""What is told before a fit is what the fit takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import convexprobe as cxp
from convexprobe.activations.stored import HostRows
from tests.storage import write_activations

CHILD = """
import gc, torch
import convexprobe as cxp
from pathlib import Path
torch.set_num_threads(1)

def rows(name):
    values = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(values[name].split()[0])

activations, y = cxp.open_activations({path!r})
cxp.fit_probes(torch.randn(100, 4), torch.arange(100) % 3, l2=1.0)  # libraries are loaded
told = cxp.estimate(activations, y, **{options})
gc.collect()
before = rows("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
cxp.fit_probes(activations, y, tol=1e-2, max_passes=20, **{options})
print(rows("VmHWM") - before, told.total.host, told.tiers["a"])
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read on Linux")
def test_memory_is_told_within_a_fifth(tmp_path: Path) -> None:
    n, d, k = 400_000, 32, 20

    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(n, d, generator=g), torch.randn(d, k, generator=g)
    y = (x @ w / d**0.5 + torch.randn(n, k, generator=g)).argmax(1)
    write_activations(tmp_path, {"a": x.bfloat16()}, y, rows=65536)
    for options, tier in [
        ({"l2": 1e-2, "memory_limit": 1}, "disk"),
        ({"l2": [1e-2, 1e-1]}, "device"),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", CHILD.format(path=str(tmp_path), options=options)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        measured, told, where = done.stdout.split()
        assert where == tier
        assert abs(int(told) / int(measured) - 1) < 0.2, (tier, measured, told)


def test_the_cost_of_rows_still_to_be_extracted_is_told() -> None:
    labels = np.arange(100_000) % 10
    layers = {
        "a": torch.empty(100_000, 50, dtype=torch.bfloat16, device="meta"),
        "b": torch.empty(100_000, 200, dtype=torch.bfloat16, device="meta"),
    }
    told = cxp.estimate(layers, labels, l2=1.0)
    assert list(told.layers) == ["a", "b"] and told.total.device == 0
    assert told.total.host == told.layers["b"].host > told.layers["a"].host > 3 * 4e6
    assert told.total.passes == 2 * told.layers["a"].passes
    assert told.layers["b"].seconds > 0
    assert str(told).splitlines()[-1].split()[0] == "all"


def test_where_rows_are_kept_and_how_many_tasks_there_are_changes_the_cost() -> None:
    x, y = torch.zeros(50_000, 40), np.arange(50_000) % 3
    here = cxp.estimate(x, y, l2=1.0)
    stored = cxp.estimate(HostRows(x), y, l2=1.0)  # type: ignore[arg-type]  # a StoredRows
    streamed = cxp.estimate(HostRows(x), y, l2=1.0, memory_limit=1e6)  # type: ignore[arg-type]  # a StoredRows
    cost = {name: e.layers["activations"] for name, e in
            (("here", here), ("stored", stored), ("streamed", streamed))}  # fmt: skip
    assert [e.tiers["activations"] for e in (here, stored, streamed)] == [
        "device", "device", "disk",
    ]  # fmt: skip
    assert cost["here"].disk == 0 and cost["stored"].disk == x.nbytes
    assert cost["stored"].host == cost["here"].host + x.nbytes
    path = cxp.estimate(x, y, l2=[0.1, 1.0, 10.0]).total
    assert path.host > here.total.host and path.passes > here.total.passes
    folds = cxp.estimate(x, y, l2=1.0, cv=5).total
    assert folds.host > here.total.host
    adam = cxp.estimate(x, y, "adam", l2=1.0).total
    assert adam.host < here.total.host  # it keeps no logits
    with pytest.raises(ValueError, match="solver: expected one of"):
        cxp.estimate(x, y, "newton")
