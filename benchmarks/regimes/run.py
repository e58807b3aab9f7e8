"""Run the regimes, keep the results in `OUT/regimes.csv`, write `OUT/regimes.md` and `.png`."""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from dataclasses import astuple
from functools import partial
from math import inf, isfinite
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from benchmarks.harness.cases import Settings
from benchmarks.harness.table import machine, versions
from benchmarks.peers import Peer, all_peers
from benchmarks.regimes import default_job, report
from benchmarks.regimes.cases import REGIMES, all_cases
from benchmarks.regimes.measure import OURS, Bench, Cache, Found, measure

FIELDS = ("regime", "case", "n", "d", "k", "strength", "l2", "who", "setting", "dtype", "seconds",
          "passes", "passes_true", "gap", "true", "status", "timed", "accuracy", "error", "loss",
          "machine", "versions")  # fmt: skip

LIMIT, LIMIT_RATIO, LEAST = 20.0, 3.0, 0.1
"""CPU seconds of one run in the search: `LIMIT`, or `LIMIT_RATIO` times what the best peer so far
took, but `LEAST` at least."""

SPREAD = 7
"""With `--until`, every so many-th case comes first, then those after them, and so on."""


def clock(text: str) -> str:
    """A time of the day as `time.strftime("%H:%M")` has it, so that they compare."""
    try:
        return time.strftime("%H:%M", time.strptime(text, "%H:%M"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a time such as 20:15, found {text!r}") from None


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    out = argparse.ArgumentParser(prog="benchmarks.regimes", description=__doc__)
    out.add_argument("--out", type=Path, default=Path("out"))
    out.add_argument("--quick", action="store_true", help="a representative third of the cases")
    every = [*REGIMES, "f"]
    out.add_argument("--only", nargs="+", choices=every, default=every, help="letters of regimes")
    out.add_argument("--search", action="store_true", help="find settings and optima, time nothing")
    out.add_argument("--ours", action="store_true", help="clock ours alone")
    out.add_argument(
        "--until", type=clock, help="start no case after this time of the day, as 20:15"
    )
    out.add_argument("--before", type=Path, help="regimes.csv of an earlier state of the library")
    return out


def search(bench: Bench, peers: dict[str, Peer], cache: Cache) -> dict[str, Found]:
    """Find every peer's setting; the best so far sets the others' limit."""
    found: dict[str, Found] = {}
    for name, peer in peers.items():
        best = min((f.seconds for f in found.values()), default=inf)
        limit = min(LIMIT, max(LIMIT_RATIO * best, LEAST))
        if reason := peer.why_not(bench.task("float32")):  # it may be installed the next time
            found[name] = Found(inf, "", inf, inf, reason)
            continue
        make = partial(bench.search, peer, limit)
        found[name] = Found(
            *cache.get(f"{bench.case.title} {name}", lambda m=make: [*astuple(m())])
        )
    return found


def read(path: Path | None) -> list[dict]:
    """Read a results table; none if there is no file."""
    if path is None or not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, rows: list[dict]) -> None:
    """Add the rows of a case, stamped with machine and versions."""
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerows({**row, "machine": machine(), "versions": versions()} for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    if options.before is not None and not options.before.is_file():
        parser().error(f"--before {options.before}: no such file")
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    settings = Settings(options.out)
    table, cache = options.out / "regimes.csv", Cache(options.out / "regimes.json")
    peers = {} if options.ours else {n: p for n, p in all_peers().items() if p.fit is not None}
    peers = dict(sorted(peers.items(), key=lambda item: not item[0].startswith("sklearn")))
    done = {row["case"] for row in read(table)}
    skipped: list[str] = []
    cases = all_cases(settings, options.quick)
    if options.until:  # small and large ones in turn: it may not come to the end
        cases = [case for i in range(SPREAD) for case in cases[i::SPREAD]]
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jobs = [] if options.ours and options.search else [*default_job.all_jobs(settings)]
        for case in [*cases, *jobs]:
            regime = case.title[1]
            if regime not in options.only or case.title in done:
                continue
            if options.until and time.strftime("%H:%M") >= options.until:
                print("time is up; the same command goes on from here", flush=True)
                break
            if reason := case.skip():
                skipped.append(f"{case.title}: {reason}")
                print(f"skipped {skipped[-1]}", flush=True)
                continue
            started = time.perf_counter()
            if regime == "f" and options.search:
                rows = []
                default_job.search(case, cache)
            elif regime == "f":
                rows = default_job.measure(case, cache, ours_only=options.ours)
            else:
                bench = Bench(case, cache)
                found = search(bench, peers, cache)
                rows = [] if options.search else measure(bench, found, peers)
            if not options.search:
                append(table, rows)
            print(line(case.title, rows, time.perf_counter() - started), flush=True)
    if not options.search:
        text = report.markdown(read(table), read(options.before), skipped)
        (options.out / "regimes.md").write_text(text)
        (options.out / "regimes.png").write_bytes(report.figure(read(table)))
        print("\n" + text)


def line(title: str, rows: list[dict], wall: float) -> str:
    """Return one line about a case: ours, the best peer, and how long it all took."""
    ours = [r["seconds"] for r in rows if r["who"].startswith(OURS)]
    theirs = [(r["seconds"], r["who"]) for r in rows if not r["who"].startswith(OURS)]
    text = f"{title}: "
    if ours:
        text += f"{min(ours):.3g} s"
    if theirs and isfinite(min(theirs)[0]):
        text += f", {min(theirs)[1]} {min(theirs)[0]:.3g} s"
    return f"{text} ({wall:.0f} s)"
