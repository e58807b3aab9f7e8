"""(f) The default job: choose the penalty on held-out rows and refit, ours against scikit-learn.

Ours is `fit_probes(x, y)`. scikit-learn's is what its users write: seven penalties, 1e-6 to 1 times
the mean feature variance, from large to small with `warm_start=True`, on all rows but the fifth
that ours holds out; errors on those rows; the lowest (ties: the lowest loss) refitted to all rows.
Each fit runs at the loosest `tol` whose coefficients are truly within 1e-3 H(Y) of the optimum; the
search for it costs nothing. A fit that has not arrived in `LIMIT` seconds ends there, and counts
with what it took. The better of lbfgs and newton-cg counts.

Both choices are judged on rows that neither has seen.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf

import numpy as np
import torch

import convexprobe as cxp
from benchmarks.harness.cases import Judge, Settings, Task
from benchmarks.harness.recorder import Meter, OutOfTime
from benchmarks.peers.scikit_learn import fit
from benchmarks.regimes import data
from benchmarks.regimes.measure import ONLY, OURS, TOL, Cache, in_turn, probe_coefficients
from convexprobe.probes.splits import hold_out

GRID = tuple(10.0**-i for i in range(7))
"""The penalties of scikit-learn's path, in units of the mean feature variance."""

LIMIT = 10.0
"""CPU seconds that one of its fits may take."""

WORSE = 0.002
"""More errors than this on fresh rows are called a worse choice: about what two equally good
choices differ by."""


@dataclass(frozen=True)
class Job:
    """A data set: `rows` of it are given to both, the rest are for the judgement."""

    name: str
    k: int
    rows: int
    load: Callable[[], data.Data]
    skip: Callable[[], str | None] = lambda: None

    @property
    def title(self) -> str:
        """Its name in tables."""
        return f"(f) {self.name}"


def all_jobs(settings: Settings) -> Iterator[Job]:
    """The data sets of (f)."""
    yield Job("2000 x 768, 2 classes, massive", 2, 2000,
              partial(data.residual, 4000, 768, 2, True))  # fmt: skip
    yield Job("MNIST pixels, 5000 rows", 10, 5000,
              partial(data.mnist_rows, settings, "pixels", 10_000), data.no_mnist)  # fmt: skip
    yield Job("BERT tokens, layer 3", len(data.TAGS), 5000,
              partial(data.bert_rows, settings.out, "tokens", 3), data.no_bert)  # fmt: skip
    yield Job("BERT sentences, layer 3", 2, 1500,
              partial(data.bert_rows, settings.out, "sentences", 3), data.no_bert)  # fmt: skip
    yield Job("digits", 10, 1200, partial(data.toy, "digits", False))


class Path:
    """scikit-learn's path for one job and solver; tolerances are found once."""

    def __init__(self, solver: str, job: Job, x: torch.Tensor, y: torch.Tensor, cache: Cache):
        self.solver, self.job, self.cache, self.x, self.y = solver, job, cache, x, y
        held = hold_out(y.numpy(), None, seed=0)
        self.parts = {"fit": np.flatnonzero(~held), "held": np.flatnonzero(held),
                      "all": np.arange(len(y))}  # fmt: skip
        kept = x[torch.from_numpy(self.parts["fit"])].double()
        self.penalties = [g * float(kept.var(0, correction=0).mean()) for g in GRID]
        self.rows = {part: x[torch.from_numpy(i)].numpy() for part, i in self.parts.items()}
        self.labels = {part: y.numpy()[i] for part, i in self.parts.items()}

    def task(self, part: str, l2: float, start: np.ndarray | None) -> Task:
        """One fit; for two classes scikit-learn cannot start from the multinomial form."""
        return Task(self.rows[part], self.labels[part], self.job.k, (l2,), start)

    def settings(self, part: str, position: int, start: np.ndarray | None) -> float:
        """The loosest `tol` of a fit from its start that is truly good enough."""
        key = f"{self.job.title} {part} {position}"
        task = self.task(part, self.penalties[position], start)
        rows, labels = torch.from_numpy(task.x), torch.from_numpy(task.y)

        def optimum() -> list:
            probe = cxp.fit_probes(rows.double(), labels, l2=task.l2[0], tol=TOL / 30,
                                   max_seconds=60, progress=False)[ONLY]  # fmt: skip
            return [float(probe.objective)]

        def search() -> list:
            judge, best = Judge(rows, labels, task.k), self.cache.get(key, optimum)[0]
            tol = 8.0
            while tol > 1e-9:
                c = self.run(task, tol)
                if c is None:
                    break
                if (judge.value(c, task.l2[0]) - best) / judge.entropy <= TOL:
                    return [tol]
                tol /= 4
            return [1e-12]

        return self.cache.get(f"{key} {self.solver}", search)[0]

    def run(self, task: Task, tol: float) -> np.ndarray | None:
        """One fit; None if it was not there in time."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return fit(self.solver, task, Meter(LIMIT), task.x, task.y, tol)
            except OutOfTime:
                return None

    def __call__(self) -> tuple:
        """The whole job; return CPU seconds, NaN and the coefficients of the choice."""
        spent, start, best, chosen = 0.0, None, (inf, inf), (0, None)
        for position, l2 in enumerate(self.penalties):
            tol = self.settings("fit", position, start)
            began = time.process_time()
            c = self.run(self.task("fit", l2, start), tol)
            spent += time.process_time() - began
            if c is None:
                continue
            began = time.process_time()
            score = scores(c, self.rows["held"], self.labels["held"])
            if score < best:
                best, chosen = score, (position, c)
            start = c if self.job.k > 2 else None
            spent += time.process_time() - began
        position, start = chosen
        start = start if self.job.k > 2 else None
        tol = self.settings("all", position, start)
        began = time.process_time()
        c = self.run(self.task("all", self.penalties[position], start), tol)
        return spent + time.process_time() - began, self.penalties[position], c


def scores(c: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Error and mean loss of coefficients; two classes may have one row."""
    z = x @ c[:, :-1].T + c[:, -1]
    z = np.concatenate([-z / 2, z / 2], axis=1) if z.shape[1] == 1 else z
    z = torch.from_numpy(z).double()
    loss = torch.nn.functional.cross_entropy(z, torch.from_numpy(y))
    return float((z.argmax(1).numpy() != y).mean()), float(loss)


def split(job: Job) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows and labels that both are given, and fresh ones."""
    x, y = job.load()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    given, fresh = order[: job.rows], order[job.rows :]
    return x[given], y[given], x[fresh], y[fresh]


def paths(job: Job, x: torch.Tensor, y: torch.Tensor, cache: Cache) -> dict[str, Path]:
    """scikit-learn's paths by the name of their solver."""
    return {f"sklearn {s}": Path(s, job, x, y, cache) for s in ("lbfgs", "newton-cg")}


def search(job: Job, cache: Cache) -> None:
    """Find every fit's `tol`, clock nothing."""
    x, y, _, _ = split(job)
    for path in paths(job, x, y, cache).values():
        path()


def measure(job: Job, cache: Cache, *, ours_only: bool = False) -> list[dict]:
    """Clock both, or ours alone; return table rows."""
    x, y, fresh_x, fresh_y = split(job)

    def ours() -> tuple:
        began = time.process_time()
        probe = cxp.fit_probes(x, y, progress=False)[ONLY]
        return time.process_time() - began, probe.l2, probe

    runs: dict[str, Callable[[], tuple]] = {OURS + "torch": ours}
    runs |= {} if ours_only else paths(job, x, y, cache)
    rows = []
    for who, (seconds, l2, result) in in_turn(runs).items():
        spent = {"status": "true"}
        if who.startswith(OURS):
            spent = {"passes": result.passes, "status": result.status.name}
            result = probe_coefficients(result)
        error, loss = scores(result, fresh_x.numpy(), fresh_y.numpy())
        rows.append({"regime": "f", "case": job.title, "n": len(x), "d": x.shape[1], "k": job.k,
                     "l2": l2, "who": who, "seconds": seconds, "timed": 3, "error": error,
                     "loss": loss, **spent})  # fmt: skip
    return rows
