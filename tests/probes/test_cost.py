"""What is told before a fit is what the fit takes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convexprobe as cxp
from convexprobe.activations.source import Rows
from convexprobe.activations.stored import HostRows
from convexprobe.probes.memory import HEAP, Family, peak
from convexprobe.problem.objective import Problem
from convexprobe.solvers import SOLVERS
from convexprobe.solvers.auto import first
from tests.storage import write_activations

CHILD = """
import ctypes, gc, torch
import convexprobe as cxp
from dataclasses import replace
from pathlib import Path
from typing import Any
torch.set_num_threads(1)

def rows(name):
    values = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(values[name].split()[0])

activations, y = cxp.open_activations({path!r})
cxp.fit_probes(torch.randn(100, 4), torch.arange(100) % 3, l2=1.0)  # libraries are loaded
told = cxp.estimate(activations, y, **{options})
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what the heap keeps counts as there before
before = rows("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
cxp.fit_probes(activations, y, tol=1e-2, max_passes=20, **{options})
print(rows("VmHWM") - before, told.total.host, told.tiers["a"])
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read on Linux")
def test_memory_is_told_within_a_quarter(tmp_path: Path) -> None:
    n, d, k = 400_000, 32, 20

    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(n, d, generator=g), torch.randn(d, k, generator=g)
    y = (x @ w / d**0.5 + torch.randn(n, k, generator=g)).argmax(1)
    write_activations(tmp_path, {"a": x.bfloat16()}, y, rows=65536)
    for options, tier in [
        ({"l2": 1e-2, "memory_limit": 1}, "disk"),
        ({"l2": [1e-2, 1e-1]}, "device"),
    ]:
        measured, told, where = measure(tmp_path, options)
        assert where == tier
        assert abs(told / measured - 1) < 0.25, (tier, measured, told)


def measure(path: Path, options: dict[str, Any]) -> tuple[int, int, str]:
    """Bytes measured and told of a fit in a process of its own, and where its rows are kept."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(path=str(path), options=options)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    measured, told, where = done.stdout.split()
    return int(measured), int(told), where


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read on Linux")
def test_logits_that_have_no_room_take_no_memory(tmp_path: Path) -> None:
    n, d, k = 70_000, 48, 300
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(n, d, generator=g), torch.randn(d, k, generator=g)
    y = (x @ w / d**0.5 + torch.randn(n, k, generator=g)).argmax(1)
    write_activations(tmp_path, {"a": x.bfloat16()}, y, rows=65536)
    measured, told, where = measure(tmp_path, {"l2": 1e-2, "memory_limit": 1e7})
    assert where == "device"
    assert measured < 1.5 * 4 * n * k  # of two arrays of logits, and all else
    assert abs(told / measured - 1) < 0.2, (measured, told)


def test_a_thousand_classes_of_all_of_imagenet_fit_in_16_gigabytes() -> None:
    for n, k in ((1_281_167, 1000), (2_450_000, 205)):
        rows = torch.empty(n, 2048, dtype=torch.bfloat16, device="meta")
        told = cxp.estimate(rows, np.arange(n) % k, l2=1e-3).total.host
        assert rows.nbytes + told < 16e9


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


def told(n: int, d: int, k: int, concepts: int = 0, **options: Any) -> int:
    """Bytes told of a fit of float32 rows that are still to be extracted."""
    x = torch.empty(n, d, device="meta")
    labels = np.arange(n)[:, None] // np.arange(1, concepts + 1) % 2 if concepts else None
    return cxp.estimate(
        x, np.arange(n) % k if labels is None else labels, l2=1.0, **options
    ).total.host


def test_the_logits_labels_and_pairs_of_many_concepts_are_counted() -> None:
    n, d, m = 5_000, 64, 200
    logits, labels, vector = 4 * 2 * n * m, 8 * n * m, 8 * 2 * (d + 1) * m
    least = 2 * logits + labels + 16 * vector
    one, two, four = (told(n, d, 2, m * times) for times in (1, 2, 4))
    assert least < one < 5 * least
    assert four - two == pytest.approx(2 * (two - one), rel=0.1)  # in proportion


def test_rows_that_are_all_in_memory_are_not_counted_again() -> None:
    n, d = 1_000, 25_088
    rows = 4 * n * d
    assert 0.5 * rows < told(n, d, 2) < 1.5 * rows  # checked rows, a preconditioner of 128 rows
    assert told(n, 2 * d, 2) < 2.1 * told(n, d, 2)
    family = Family(n=n, d=d, k=2, m=1, item=4, stored=4, capacity=n, held=True, passes=12)
    assert family.gathered(2 * n) == [] and family.gathered(10) == [4 * 10 * d]
    assert replace(family, stored=2).gathered(2 * n) == [rows]  # converted
    assert replace(family, held=False).gathered(2 * n) == [rows]  # read
    assert replace(family, held=False, capacity=10).gathered(2 * n) == [4 * 10 * d]


def test_a_heap_stays_at_its_largest_and_mapped_arrays_go() -> None:
    small, large = HEAP / 4, 4.0 * HEAP
    assert peak([[small, small, large], [small, large, large]]) == 2 * small + 2 * large
    assert peak([[large], [small] * 3]) == large + 3 * small
    assert peak([[small], [small]]) == small


def test_validation_rows_are_counted_where_they_are_loaded_and_no_rows_are_held_out() -> None:
    x, y = torch.zeros(5_000, 40), np.arange(5_000) % 3
    host = cxp.estimate(x, y, l2=[0.1, 1.0]).total.host
    given = cxp.estimate(x, y, l2=[0.1, 1.0], validation=(x, y)).total.host
    assert given < host
    rows = HostRows(x)
    stored = cxp.estimate(x, y, l2=[0.1, 1.0], validation=(rows, y)).total.host
    assert stored == given + x.nbytes
    with pytest.raises(TypeError, match="validation: expected a pair"):
        cxp.estimate(x, y, validation=x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="validation: no layer 'a'"):
        cxp.estimate({"a": x}, y, validation=({"b": x}, y))
    with pytest.raises(ValueError, match=r"validation\['activations'\]: expected 40 features"):
        cxp.estimate(x, y, validation=(x[:, :3], y))
    with pytest.raises(ValueError, match="cv: folds"):
        cxp.estimate(x, y, validation=(x, y), cv=3)


def test_solvers_differ_in_what_they_keep() -> None:
    n, d, k = 50_000, 256, 10
    host = {solver: told(n, d, k, solver=solver) for solver in SOLVERS}
    assert min(host, key=lambda name: host[name]) in ("adam", "rmsprop")  # no logits
    assert host["auto"] == host["newton-cg"] != host["lbfgs"]


@pytest.mark.parametrize("n", [500, 20_000])
@pytest.mark.parametrize("d", [4, 512, 513])
@pytest.mark.parametrize("k", [2, 30])
def test_auto_is_told_as_the_solver_that_it_begins_with(n: int, d: int, k: int) -> None:
    x, y = torch.zeros(n, d), torch.arange(n) % k
    problem = Problem(Rows(x), y, np.ones(1), classes=k)
    assert told(n, d, k) == told(n, d, k, solver=first(problem))
