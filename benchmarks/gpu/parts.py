"""The parts of `python -m benchmarks.gpu`: tests, scale, regimes, forward.

Each keeps what it measured as it comes, so that a part which is ended leaves what it had. A part
that cannot run here raises `Skipped`; an error inside one of its steps is kept as that step's
result where the others can still be run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.cases import Judge, Settings, Task
from benchmarks.harness.recorder import Arrived, OutOfTime, Recorder
from benchmarks.peers import all_peers
from benchmarks.regimes import data
from benchmarks.regimes.cases import RegimeCase, all_cases
from benchmarks.scale.cost_model import Measurement
from benchmarks.scale.imagenet import CLASSES, FEATURES, IMAGES, expected_bytes
from benchmarks.scale.measure import TOL, Run, ceilings, cold_and_warm
from benchmarks.scale.peers import inception, torch_lbfgs, until_reached
from benchmarks.scale.spectrum import Features
from convexprobe import Probe, fit_probes
from convexprobe.activations.placement import free_memory
from convexprobe.arrays import fused, split_products
from convexprobe.arrays.backend import to_numpy

ROOT = Path(__file__).parents[2]

TESTS = ("tests/test_gpu.py", "tests/examples/test_mnist_training.py")
"""The files with tests marked gpu."""

NEEDED = ("pytest", "hypothesis", "array_api_strict")
"""Modules that the tests import."""

PROBES = 20
"""Layers of the network whose probes are wanted."""

PILOT = 8
"""The size that tells how long the largest one will take has one in so many of its rows."""

FOR_PEERS = 0.4
"""The share of the time of `scale` that is left to other programs."""

CASES = (
    "(a) 2000 x 2048, 2 classes, l2=0.1",
    "(a) 4000 x 4096, 2 classes, massive, l2=0.01",
    "(a) 10000 x 768, 10 classes, l2=0.0001",
    "(a) 10000 x 4096, 10 classes, massive, l2=0.01",
    "(d) 5000 x 128, 100 classes, l2=0.01",
    "(d) 5000 x 128, 1000 classes, l2=0.0001",
)
"""The cases of `benchmarks.regimes` that are solved on the device."""

PEERS = ("cuml qn", "cyanure-gpu qning-ista")
"""Peers with a way of their own onto the device. torch's L-BFGS is run here."""

REPEATS, LONG = 3, 5.0
"""Runs whose median counts, after one that does not; above `LONG` seconds the first one counts."""


class Skipped(Exception):
    """Raised by a part that cannot run on this machine; says why."""


@dataclass(frozen=True)
class Part:
    """A part of the command.

    Attributes:
        work: what it does, at tiny sizes if its second argument is true.
        seconds: that it may take, its start included. All parts together: 540.
    """

    work: Callable[[Run, bool], None]
    seconds: float


class Outcomes:
    """A plugin of pytest that keeps the outcome of every test as it comes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.counts = Counter(passed=0, failed=0, skipped=0)
        self.failed: list[str] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Keep which test is running: it may be the one that never ends."""
        self.run.keep("running", nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test, and name it if it failed."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.outcome == "failed":
            self.failed.append(report.nodeid)
        self.run.keep("outcomes", {**self.counts, "names": self.failed})

    def pytest_collectreport(self, report: Any) -> None:
        """Count a file that cannot be imported as a test that failed."""
        if report.failed:
            self.counts["failed"] += 1
            self.failed.append(report.nodeid)
            self.run.keep("outcomes", {**self.counts, "names": self.failed})


def tests(run: Run, quick: bool) -> None:
    """Run the tests marked gpu. Warnings, of other versions of torch, are no errors here."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise Skipped(f"not installed: {', '.join(missing)}")
    import pytest

    outcomes = Outcomes(run)
    code = pytest.main(
        ["-m", "gpu", "-W", "default", "-o", "addopts=", "-q", "--tb=short",
         "--continue-on-collection-errors", "-p", "no:xdist", "-p", "no:cacheprovider",
         "--rootdir", str(ROOT),
         "-c", str(ROOT / "pyproject.toml"), *(str(ROOT / file) for file in TESTS)],
        plugins=[outcomes],
    )  # fmt: skip
    run.results.pop("running", None)
    if outcomes.failed:
        failed(run, f"tests that failed: {len(outcomes.failed)}")
    elif code != 0:
        raise RuntimeError(f"pytest ended with exit code {int(code)} before the tests ran")


def scale(run: Run, quick: bool) -> None:
    """Solve probes at the size of ImageNet, or at the largest that memory and time allow.

    Rows are made on the device, in bfloat16. One in `PILOT` of them are solved twice, first to set
    up libraries, then to tell how many rows there is time for. Then layer after layer is solved,
    cold and at the next checkpoint warm, while there is time for one more, and at most `PROBES`.
    """
    run.dtype = torch.bfloat16
    n, d, k = (3_000, 32, 5) if quick else (IMAGES, FEATURES, CLASSES)
    probes = 2 if quick else PROBES
    cuda = run.device == "cuda"
    run.keep("ceilings", ceilings(run, d, k))
    device = torch.empty(0, device=run.device).device  # with its number
    while expected_bytes(n, d, k) > 0.8 * free_memory(device):
        n = int(0.8 * n)
    for _ in range(2):
        started = run.clock()
        solves = cold_and_warm(run, Features(n // PILOT, d, k), limit=0.1 * run.left)
        each = PILOT * (run.clock() - started)  # at most: passes do not grow with the rows
    run.keep("pilot", [asdict(m) for m in solves])
    reserve = FOR_PEERS * run.left
    while n > max(1, IMAGES // PILOT) and each > run.left - reserve:
        n, each = int(0.8 * n), 0.8 * each
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    solves, longest = [], 0.0
    for layer in range(probes):
        if solves and longest > run.left - reserve:
            break
        started = run.clock()
        solves += cold_and_warm(run, Features(n, d, k, seed=layer), limit=0.3 * run.left)
        longest = max(longest, 1.1 * (run.clock() - started))
        run.keep("solves", [asdict(m) for m in solves])
        run.keep("probes", [summary(solves, start, probes) for start in ("cold", "warm")])
    if cuda:
        run.keep("peak_bytes", torch.cuda.max_memory_allocated())
    run.keep("products", {
        str(key): "plain" if way is None else way.split.__name__
        for key, way in split_products._chosen.items()
    })  # fmt: skip
    run.keep("kernels", {str(key): trusted for key, trusted in fused._trusted.items()})
    try:
        torch_lbfgs(run, Features(n, d, k), limit=max(2.0, 0.5 * run.left))
    except Exception as error:  # ours are measured, whatever becomes of the comparison
        failed(run, f"torch_lbfgs: {short(error)}")


def summary(solves: list[Measurement], start: str, probes: int) -> dict[str, Any]:
    """Return what so many probes take, cold or warm, from those that were solved.

    `extrapolated` tells whether fewer were solved: then `seconds` are `probes` times their mean.
    """
    here = [m for m in solves if m.start == start]
    return {
        "start": start, "probes": probes, "solved": len(here),
        "extrapolated": len(here) < probes, "seconds": probes * fmean(m.seconds for m in here),
        "passes": fmean(m.passes for m in here), "gap": max(m.gap for m in here),
        "certified": sum(m.status == "CERTIFIED" for m in here),
        "flops": fmean(m.flops for m in here), "size": [here[0].n, here[0].d, here[0].k],
    }  # fmt: skip


def regimes(run: Run, quick: bool) -> None:
    """Solve cases of `benchmarks.regimes` with rows on the device, ours and the peers installed.

    Ours ends when its gap is certified to be at most `TOL`, the others when they are truly within
    it of the optimum of a float64 fit; to be told so costs them nothing. torch's L-BFGS and ours
    are medians of three runs. cuML and cyanure-gpu cannot be watched: each starts again with twice
    the iterations until it is there, and only the last run counts, with its copy to the device.
    """
    known = {case.title: case for case in all_cases(Settings(run.out))}
    cases = [known[title] for title in CASES]
    if quick:
        cases = [
            RegimeCase(
                "a", "200 x 64, 2 classes", 2, 0.1, partial(data.residual, 200, 64, 2, True)
            ),
            RegimeCase("d", "5000 x 128, 10 classes", 10, 0.1, partial(data.classes, 10)),
        ]
    found: list[dict[str, Any]] = []
    for i, case in enumerate(cases):
        limit = run.left / (4 * (len(cases) - i))  # of one contestant, in seconds
        try:
            for entry in contest(run, case, limit):
                found.append({"case": case.title, **entry})
                run.keep("cases", found)
        except Exception as error:  # the other cases are still to be run
            failed(run, f"{case.title}: {short(error)}")


def contest(run: Run, case: RegimeCase, limit: float) -> Iterator[dict[str, Any]]:
    """Solve one case by everybody in turn, each for `limit` seconds at most."""
    x, y = (values.to(run.device) for values in case.load())
    l2, judge = case.l2(x), Judge(x, y, case.k)
    settings: dict[str, Any] = {"l2": l2, "max_seconds": limit, "progress": False}
    (best,) = fit_probes(x.double(), y, tol=TOL / 100, **settings).values()
    optimum = float(best.objective)

    def excess(coefficients: np.ndarray) -> float:
        return (judge.value(coefficients, l2) - optimum) / judge.entropy

    def ours(rows: Any) -> Probe:
        (probe,) = fit_probes(rows, y, tol=TOL, **settings).values()
        return probe

    for library, rows in libraries(run, x):
        who = f"convexprobe, {library}"
        try:
            seconds, probe = median_of(run, partial(ours, rows))
        except Exception as error:  # the other library, and the peers, may do better
            failed(run, f"{case.title}, {who}: {short(error)}")
            continue
        found = np.column_stack([to_numpy(probe.weights), to_numpy(probe.bias)])
        yield {"who": who, "seconds": seconds, "passes": probe.passes, "true": excess(found),
               "status": probe.status.name.lower()}  # fmt: skip
    goal = optimum + TOL * judge.entropy
    seconds, last = median_of(run, lambda: until_reached(run, x, y, case.k, l2, goal, limit))
    yield {"who": "torch lbfgs", "seconds": seconds, "passes": float(last["evaluations"]),
           "true": (last["value"] - optimum) / judge.entropy, "status": last["status"]}  # fmt: skip
    task = Task(x.cpu().numpy(), y.cpu().numpy(), case.k, (l2,))
    for who in PEERS:
        yield {"who": who, **watch(who, task, excess, limit)}


def libraries(run: Run, x: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield the rows as an array of each library that is here and has this device."""
    yield "torch", x
    if run.device == "cuda" and find_spec("cupy") is not None:
        import cupy

        yield "cupy", cupy.from_dlpack(x)


def watch(
    who: str, task: Task, excess: Callable[[np.ndarray], float], limit: float
) -> dict[str, Any]:
    """Run a peer until it is truly within `TOL`; return an entry of the table, or why not."""
    peer, none = all_peers()[who], {"seconds": None, "passes": None, "true": None}
    if reason := peer.why_not(task):
        return {**none, "status": reason}
    record, status = Recorder(limit, excess, goal=TOL), "stalled"
    try:
        peer.run(task, record)
    except Arrived:
        status = "arrived"
    except OutOfTime:
        status = f"not within {limit:.0f} s"
    except Exception as error:  # a peer's failure is a result
        return {**none, "status": f"failed: {short(error)}"}
    index = record.first_reached(TOL)
    if index is None:
        return {**none, "status": status}
    point = record.points[index]
    return {"seconds": point.seconds, "passes": point.passes, "true": record.value(index),
            "status": "arrived"}  # fmt: skip


def median_of(run: Run, work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the median seconds of `REPEATS` runs after one that warms up, and the last result."""
    times: list[float] = []
    for _ in range(1 + REPEATS):
        started = run.clock()
        result = work()
        times.append(run.clock() - started)
        if times[0] > LONG:
            return times[0], result
    return median(times[1:]), result


def forward(run: Run, quick: bool) -> None:
    """Time Inception's forward pass on made images, and extrapolate to all of ImageNet."""
    inception(run, IMAGES, batches=1 if quick else 5)
    if isinstance(run.results["inception"], str):
        raise Skipped(run.results["inception"])


def failed(run: Run, reason: str) -> None:
    """Keep that a step failed; the part goes on."""
    run.keep("failures", [*run.results.get("failures", []), reason])


def short(error: Exception) -> str:
    """Return the kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


PARTS = {
    "tests": Part(tests, 120.0),
    "scale": Part(scale, 230.0),
    "regimes": Part(regimes, 140.0),
    "forward": Part(forward, 50.0),
}
"""By name, in the order in which they are run."""
