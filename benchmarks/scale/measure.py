"""Measure at scale: results and deadline of a run, the device's ceilings, and timed solves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.cases import label_entropy
from benchmarks.scale.cost_model import Measurement
from benchmarks.scale.spectrum import Features
from convexprobe import ProbeSet, fit_probes, remember
from convexprobe.probes.warm_start import Remembered

DRIFT = 0.1
TOL = 1e-3


@dataclass
class Run:
    """A run of the benchmark and its results so far.

    Attributes:
        device: "cpu" or "cuda".
        deadline: when the run should end, in seconds of `time.perf_counter`.
        out: folder of the file.
        name: of the JSON file, which is written after every part.
        dtype: of the rows.
        results: by name of the part.
    """

    device: str
    deadline: float
    out: Path
    name: str = "imagenet_scale.json"
    dtype: torch.dtype = torch.float16
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.perf_counter()

    def keep(self, part: str, value: Any) -> None:
        """Add a part and write all results, so that a run which is killed leaves what it had."""
        self.results[part] = value
        self.out.mkdir(parents=True, exist_ok=True)
        temporary = self.out / f"{self.name}.tmp"
        temporary.write_text(json.dumps(self.results, indent=1))
        temporary.replace(self.out / self.name)

    def clock(self) -> float:
        """Wait for the device, then return `time.perf_counter()`."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def best_of(run: Run, work: Callable[[], Any], repeats: int = 5) -> float:
    """Return the seconds of the fastest of some repeats, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        started = run.clock()
        work()
        seconds.append(run.clock() - started)
    return min(seconds)


def ceilings(run: Run, d: int, k: int) -> dict[str, float]:
    """Measure bytes/s of a copy (read and written) and flop/s of a product as a pass has it."""
    rows = 1 << 16 if run.device == "cuda" else 1 << 13
    x, w = torch.randn(rows, d, device=run.device), torch.randn(k, d, device=run.device)
    other, z = torch.empty_like(x), torch.empty(k, rows, device=run.device)
    copy = best_of(run, lambda: other.copy_(x))
    product = best_of(run, lambda: torch.mm(w, x.T, out=z))
    return {"bytes_per_second": 2.0 * x.nbytes / copy, "flops": 2.0 * rows * d * k / product}


def solve(
    run: Run,
    features: Features,
    x: Tensor,
    y: Tensor,
    before: Remembered | None = None,
    limit: float = inf,
) -> tuple[ProbeSet, Measurement]:
    """Fit and time one layer's probe, warm if there is a `before`, for `limit` seconds at most."""
    l2 = 1e-3 * float(x[:4096].float().var(0).mean())
    started = run.clock()
    probes = fit_probes(x, y, l2=l2, tol=TOL, warm_start=before, classes=range(features.k),
                        max_seconds=limit, progress=False)  # fmt: skip
    seconds = run.clock() - started
    probe = probes["activations"]
    gap = probe.gap / label_entropy(y)
    start = "cold" if before is None else "warm"
    size = (features.n, features.d, features.k)
    return probes, Measurement(
        *size, start, seconds, probe.passes, gap, probe.status.name, x.itemsize
    )


def cold_and_warm(run: Run, features: Features, limit: float = inf) -> list[Measurement]:
    """Solve a checkpoint cold, then the next one warm, whose time includes that of `remember`."""
    x, y = features.make(run.device, run.dtype)
    probes, cold = solve(run, features, x, y, limit=limit)
    started = run.clock()
    memory = remember(probes, x)
    spent = run.clock() - started
    del x, y  # only one checkpoint may be in memory
    later = replace(features, drift=DRIFT)
    _, warm = solve(run, later, *later.make(run.device, run.dtype), memory, limit)
    return [cold, replace(warm, seconds=warm.seconds + spent)]
