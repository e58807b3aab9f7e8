"""Run every peer on every problem, or a subset, and keep the results in `OUT/benchmark.csv`.

    python -m benchmarks.run --out out [--problems 'digits*'] [--peers 'sklearn*'] [--list]
    python -m benchmarks.report --out out

A peer is a way to solve the problem: one of our solvers, or another library's. Accuracy is
`(F - F*) / H(Y)`, the scale of `tol`, from a float64 evaluation of the coefficients; `F*` is a
certified lower bound from a float64 solve. A peer's clock includes all that a user waits for, and
stops while its iterates are recorded. It runs in float32 and, if that run stops by itself above
the goal, in float64. Its time limit is a multiple of what our reference solver took to the goal.
Runs that are already in the table are not repeated.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from fnmatch import fnmatch
from math import nan
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.cases import Case, Judge, Settings, Task, lower_bounds, multiclass
from benchmarks.harness.recorder import Arrived, OutOfTime, Recorder
from benchmarks.harness.table import Row, Table, first
from benchmarks.harness.targets import CERTIFIED, OURS, REFERENCES, TARGETS
from benchmarks.peers import Peer, all_peers
from benchmarks.problems import all_cases

GOAL = TARGETS[-1]
LEVELS = tuple(10.0 ** (-i / 2) for i in range(11))
"""Suboptimalities at which a family solved one task at a time is recorded."""

CURVE = 25
"""Number of points of a run that go into the table, beside those at the targets."""


class Bench:
    """One case with its rows in memory, its judge and its reference optima."""

    def __init__(self, case: Case, cache: Path) -> None:
        self.case = case
        self.x, self.y = case.load()
        self.judge = Judge(self.x, self.y, case.k)
        self.optima = lower_bounds(case, self.x, self.y, cache)

    def task(self, dtype: str) -> Task:
        """Return the task for a peer, its rows converted to `dtype`."""
        x = self.x.numpy().astype(dtype, copy=False)
        return Task(x, self.y.numpy(), self.case.k, self.case.l2)

    def value(self, coefficients: np.ndarray, tasks: slice) -> float:
        """Return the relative suboptimality of coefficients, the largest of the tasks."""
        each = coefficients if coefficients.ndim == 3 else [coefficients]
        pairs = zip(each, self.case.l2[tasks], self.optima[tasks], strict=True)
        excess = max(self.judge.value(c, l2) - best for c, l2, best in pairs)
        return excess / self.judge.entropy

    def record(self, peer: Peer, task: Task, limit: float, tasks: slice) -> tuple:
        """Run a peer once; return its recorder, and how the run ended."""
        record = Recorder(
            limit, lambda c: self.value(c, tasks), GOAL, CERTIFIED, self.judge.entropy
        )
        try:
            peer.run(task, record)
        except Arrived:
            return record, "arrived"
        except OutOfTime:
            return record, "out of time"
        except Exception as error:  # a peer's failure is a result, written in the table
            return record, f"failed: {type(error).__name__}: {error}"[:200].replace("\n", " ")
        return record, "ended"

    def run(self, peer: Peer, dtype: str, limit: float) -> tuple[list[tuple], str]:
        """Run a peer on the case; return `(seconds, passes, suboptimality, gap)`s and a status."""
        task = self.task(dtype)
        if peer.family or len(self.case.l2) == 1:
            record, status = self.record(peer, task, limit, slice(None))
            return curve(record), status
        return self._one_by_one(peer, task, limit)

    def _one_by_one(self, peer: Peer, task: Task, limit: float) -> tuple:
        """Run a peer along the path, each task from the last; seconds and passes are summed."""
        totals = {level: [0.0, 0.0] for level in LEVELS}
        left, start, status = limit, None, "arrived"
        for i, l2 in enumerate(self.case.l2):
            one = replace(task, l2=(l2,), start=start)
            record, status = self.record(peer, one, left, slice(i, i + 1))
            for level in list(totals):
                index = record.first_reached(level)
                if index is None:
                    del totals[level]
                else:
                    totals[level][0] += record.points[index].seconds
                    totals[level][1] += record.points[index].passes
            left -= record.points[-1].seconds if record.points else limit
            if left <= 0 or status.startswith("failed"):
                undone = i + 1 < len(self.case.l2) or status != "arrived"
                status = "out of time" if undone and left <= 0 else status
                totals = {} if i + 1 < len(self.case.l2) else totals
                break
            start = multiclass(record.points[-1].coefficients, task.k, task.d)
        return [(*spent, level, nan) for level, spent in totals.items()], status


def curve(record: Recorder) -> list[tuple[float, float, float, float]]:
    """Return the points that first meet a target or certify, and points spread over the run."""
    last = len(record.points) - 1
    chosen = {i for t in TARGETS if (i := record.first_reached(t)) is not None}
    if last >= 0:
        chosen |= {round(i) for i in np.geomspace(1, last + 1, CURVE) - 1}
        chosen |= {round(i) for i in np.linspace(0, last, CURVE)} if last < CURVE else set()
    gaps = [i for i, p in enumerate(record.points) if p.gap <= CERTIFIED][:1]
    points = [(record.points[i], record.value(i)) for i in sorted(chosen | set(gaps))]
    return [(p.seconds, p.passes, value, p.gap) for p, value in points]


def run_one(bench: Bench, name: str, peer: Peer, limit: float, repeat: int) -> list[Row]:
    """Run a peer in float32 and, if it stopped by itself above the goal, in float64."""
    task, rows = bench.task("float32"), []
    shape = (bench.case.name, task.n, task.d, task.k, len(task.l2), name)
    if reason := peer.why_not(task):
        return [Row(*shape, "", repeat, nan, nan, nan, nan, reason, limit)]
    for dtype in ("float32", "float64"):
        points, status = bench.run(peer, dtype, limit)
        points = points or [(nan, nan, nan, nan)]
        rows += [Row(*shape, dtype, repeat, *point, status, limit) for point in points]
        if status != "ended" or first(rows, GOAL):
            break
    return rows


def seconds_to_goal(table: Table, case: str, limit: float) -> float:
    """Return the reference solver's seconds to the goal, or `limit` if it did not arrive."""
    for name in REFERENCES:
        rows = [row for row in table.rows if row.case == case and row.peer == name]
        if hit := first(rows, GOAL):
            return hit.seconds
    return limit


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("--out", type=Path, default=Path("out"))
    out.add_argument("--problems", nargs="*", default=["*"], help="patterns of case names")
    out.add_argument("--peers", nargs="*", default=["*"], help="patterns of peer names")
    out.add_argument("--limit", type=float, default=10.0, help="seconds a run may take at most")
    out.add_argument("--least", type=float, default=2.0, help="seconds a run is given at least")
    out.add_argument("--limit-ratio", type=float, default=12.0,
                     help="limit of a run, times our reference solver's seconds")  # fmt: skip
    out.add_argument("--rows", type=int, default=20_000, help="rows of the MNIST cases")
    out.add_argument("--repeats", type=int, default=1, help="runs of ours; their median counts")
    out.add_argument("--again", action="store_true", help="repeat runs that are in the table")
    out.add_argument("--list", action="store_true", help="print the cases and peers, run nothing")
    return out


def matches(name: str, patterns: list[str]) -> bool:
    """Whether a pattern fits the name, or the rest of it (`auto`) after `convexprobe `."""
    return any(fnmatch(name, p) or fnmatch(name.removeprefix(OURS), p) for p in patterns)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    cases = [
        c
        for c in all_cases(Settings(options.out, options.rows))
        if matches(c.name, options.problems)
    ]
    peers = all_peers()
    reference = next(name for name in REFERENCES if name in peers)
    # The reference runs first, because its time sets the others' limit.
    names = sorted(peers, key=lambda name: name != reference)
    names = [name for name in names if matches(name, options.peers)]
    if options.list:
        print(*(c.name for c in cases), "", *names, sep="\n")
        return
    table = Table(options.out / "benchmark.csv")
    for i, case in enumerate(cases):
        todo = [name for name in names if options.again or not table.has(case.name, name)]
        if not todo:
            continue
        print(f"[{i + 1}/{len(cases)}] {case.name}", flush=True)
        bench = Bench(case, options.out / "optima.json")
        for name in todo:
            longest = options.limit
            if name != reference:
                ours = seconds_to_goal(table, case.name, options.limit)
                longest = min(max(options.limit_ratio * ours, options.least), options.limit)
            if table.has(case.name, name):
                table.forget(case.name, name)
            started = time.perf_counter()
            rows: list[Row] = []
            for repeat in range(options.repeats if peers[name].family else 1):
                rows += run_one(bench, name, peers[name], longest, repeat)
            table.append(rows)
            print(line(name, rows, time.perf_counter() - started), flush=True)


def line(name: str, rows: list[Row], wall: float) -> str:
    """Return one line about a run: seconds and passes to each target, and how it ended."""
    cells = []
    for target in TARGETS:
        hit = first(rows, target)
        cells.append(f"{hit.seconds:8.3f} s {hit.passes:6.0f} p" if hit else f"{'-':>19}")
    return f"    {name:28} {'  '.join(cells)}  {rows[-1].status} ({wall:.0f} s)"


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
