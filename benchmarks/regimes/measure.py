"""Measure one case: the optimum, the best setting of each peer, then all clocks in turn."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path
from statistics import fmean, median

import numpy as np

import convexprobe as cxp
from benchmarks.harness.cases import Judge, Task
from benchmarks.harness.recorder import Meter, OutOfTime, Recorder
from benchmarks.harness.targets import OURS
from benchmarks.peers import Peer
from benchmarks.peers.convexprobe_solvers import run as watch_ours
from benchmarks.regimes.cases import RegimeCase
from convexprobe.solvers import by_name

TOL = 1e-3
"""What ours certifies and everybody reaches, in units of `H(Y)`."""

ONLY = "activations"
"""The name `fit_probes` gives to one layer without a name."""

REPEATS, SHORT, SHORT_REPEATS = 3, 0.1, 5
"""Runs whose median counts; below `SHORT` seconds each is the mean of `SHORT_REPEATS`."""

LONG, LONGEST = 0.5, 5.0
"""Seconds above which a first run needs no warming up, and above which it is the only one."""

SLOWER = 2.0
"""Peers that took more than this times the best one's time in the search are not timed again."""

STRIDE = 4
"""The search takes this many settings at a time, then halves the last stride."""


@dataclass(frozen=True)
class Found:
    """The loosest setting of a peer that is truly good enough, or why there is none.

    Attributes:
        setting: infinite if there is none.
        dtype: of the rows; float64 where float32 does not get there.
        seconds, passes: of one run in the search.
        note: why there is none.
    """

    setting: float
    dtype: str
    seconds: float
    passes: float
    note: str = ""


class Cache:
    """A dictionary in a JSON file, written at every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, list] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, key: str, make: Callable[[], list]) -> list:
        """The value of the key, made if it is not there."""
        if key not in self.known:
            self.known[key] = make()
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(self.known, indent=0))
            new.replace(self.path)
        return self.known[key]


class Bench:
    """One case with its rows, its judge and the optimum."""

    def __init__(self, case: RegimeCase, cache: Cache) -> None:
        self.case = case
        self.x, self.y = case.load()
        self.l2 = case.l2(self.x)
        self.judge = Judge(self.x, self.y, case.k)
        self.optimum, self.accuracy = cache.get(f"{case.title} optimum", self._optimum)
        self.tasks: dict[str, Task] = {}

    def _optimum(self) -> list:
        """The value of a float64 fit, and how far it may be from the optimum, in `H(Y)`."""
        probe = cxp.fit_probes(self.x.double(), self.y, l2=self.l2, tol=TOL / 100,
                               max_passes=3000, max_seconds=120, progress=False)[ONLY]  # fmt: skip
        return [float(probe.objective), float(probe.gap) / self.judge.entropy]

    def task(self, dtype: str) -> Task:
        """The task for a peer."""
        if dtype not in self.tasks:
            x = self.x.numpy().astype(dtype, copy=False)
            self.tasks[dtype] = Task(x, self.y.numpy(), self.case.k, (self.l2,))
        return self.tasks[dtype]

    def excess(self, coefficients: np.ndarray) -> float:
        """How far coefficients are above the optimum, in `H(Y)`."""
        return (self.judge.value(coefficients, self.l2) - self.optimum) / self.judge.entropy

    def spent(self, peer: Peer, setting: float, dtype: str, limit: float) -> tuple:
        """Run a peer; return CPU seconds, passes and coefficients (None: it was not in time)."""
        assert peer.fit is not None
        task, meter = self.task(dtype), Meter(limit)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                coefficients = peer.fit(task, setting, meter)
        except OutOfTime:
            coefficients = None
        return meter.seconds, meter.passes, coefficients

    def search(self, peer: Peer, limit: float) -> Found:
        """Look for the loosest setting of a peer that is truly good enough, in `limit` seconds."""
        task = self.task("float32")
        if reason := peer.why_not(task):
            return Found(inf, "", inf, inf, reason)
        note = ""
        for dtype in ("float32", "float64"):
            try:
                good, note = self._loosest(peer, dtype, limit)
            except Exception as error:  # a peer's failure is a result, written in the table
                good, note = None, f"failed: {type(error).__name__}: {error}"[:120]
            if good is not None:
                return good
            if note.startswith("out of time"):
                break
        return Found(inf, "", inf, inf, note.replace("\n", " "))

    def _loosest(self, peer: Peer, dtype: str, limit: float) -> tuple[Found | None, str]:
        """The search in one precision: strides to the first good setting, then halves."""

        def attempt(index: int) -> tuple[Found | None, float]:
            setting = peer.settings[index]
            seconds, passes, c = self.spent(peer, setting, dtype, limit)
            if c is None:
                return None, inf
            good = self.excess(c) <= TOL
            return (Found(setting, dtype, seconds, passes) if good else None), seconds

        last, bad, best = len(peer.settings) - 1, -1, None
        for index in sorted({*range(0, last, STRIDE), last}):
            found, seconds = attempt(index)
            if found is not None:
                high, best = index, found
                break
            if seconds > limit:
                return None, f"out of time: {limit:.2g} s"
            bad = index
        if best is None:
            return None, "stalled"
        while high - bad > 1:
            middle = (high + bad) // 2
            found, _ = attempt(middle)
            high, bad, best = (middle, bad, found) if found else (high, middle, best)
        return best, ""

    def ours(self, numpy: bool = False) -> tuple:
        """Fit ours; return CPU seconds, passes and the probe."""
        x, y = (self.x.numpy(), self.y.numpy()) if numpy else (self.x, self.y)
        started = time.process_time()
        probe = cxp.fit_probes(x, y, l2=self.l2, tol=TOL, progress=False)[ONLY]
        return time.process_time() - started, probe.passes, probe

    def passes_to_truth(self) -> float:
        """Passes after which ours is truly good enough, certified or not."""
        record = Recorder(inf, lambda c: self.excess(c.reshape(c.shape[-2:])), goal=-inf)
        watch_ours(by_name("auto"), self.task("float32"), record, TOL, 1000.0)
        index = record.first_reached(TOL)
        return nan if index is None else record.points[index].passes


def in_turn(runs: dict[str, Callable[[], tuple]]) -> dict[str, tuple[float, float, object]]:
    """Clock every run `REPEATS` times, in turn; return median seconds, passes and last result."""
    first = {name: run() for name, run in runs.items()}  # a long one counts, a short one warms up
    times = {name: [out[0]] if out[0] > LONG else [] for name, out in first.items()}
    for _ in range(REPEATS):
        for name, run in runs.items():
            if len(times[name]) == REPEATS or first[name][0] > LONGEST:
                continue
            times[name].append(fmean(run()[0] for _ in range(
                SHORT_REPEATS if first[name][0] < SHORT else 1)))  # fmt: skip
    return {name: (median(times[name]), *first[name][1:]) for name in runs}


def probe_coefficients(probe: cxp.Probe) -> np.ndarray:
    """Coefficients `(k, d + 1)` of a probe."""
    return np.column_stack([np.asarray(probe.weights), np.asarray(probe.bias)])


def measure(bench: Bench, found: dict[str, Found], peers: dict[str, Peer]) -> list[dict]:
    """Clock ours and the peers that came near the best in the search; return table rows."""
    case = bench.case
    shape = {"regime": case.regime, "case": case.title, "n": len(bench.x), "d": bench.x.shape[1],
             "k": case.k, "strength": case.strength, "l2": bench.l2,
             "accuracy": bench.accuracy}  # fmt: skip
    runs: dict[str, Callable[[], tuple]] = {OURS + "torch": bench.ours}
    if case.regime == "e":
        runs[OURS + "numpy"] = lambda: bench.ours(numpy=True)
    best = min((f.seconds for f in found.values()), default=inf)
    for name, f in found.items():
        if isfinite(f.setting) and f.seconds <= max(SLOWER * best, best + 2e-3):
            runs[name] = lambda n=name, f=f: bench.spent(peers[n], f.setting, f.dtype, inf)
    rows = []
    for name, (seconds, passes, result) in in_turn(runs).items():
        row = {**shape, "who": name, "seconds": seconds, "passes": passes, "timed": REPEATS}
        if name.startswith(OURS):
            row["true"] = bench.excess(probe_coefficients(result))
            row |= {"gap": float(result.gap) / bench.judge.entropy, "status": result.status.name}
            if case.regime in "bc":
                row["passes_true"] = bench.passes_to_truth()
        else:
            row |= {"setting": found[name].setting, "dtype": found[name].dtype,
                    "true": bench.excess(result), "status": "true"}  # fmt: skip
        rows.append(row)
    for name, f in found.items():
        if name not in runs:
            rows.append({**shape, "who": name, "seconds": f.seconds, "passes": f.passes,
                         "setting": f.setting, "dtype": f.dtype, "timed": 0,
                         "status": f.note or "true"})  # fmt: skip
    return rows
