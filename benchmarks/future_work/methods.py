"""The solvers compared, cold and warm, and how a run is recorded.

Every point of a run has passes, CPU seconds of one thread, the true gap `F - F*` and the certified
one, both relative to `H(Y)`. For our solvers they are the loop's own. The others know of no bound:
their coefficients are given our certificate, free and repaired on all rows, while the clock stands.

A warm run starts from the last checkpoint's probe, transferred (`solvers/starts.py`). All are given
the same start, and all pay for it: the logits remembered there, and the transfer.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch

import convexprobe as cxp
from benchmarks.future_work.problems import Layer
from benchmarks.harness.cases import Task
from benchmarks.peers import scikit_learn_sag
from convexprobe.activations.source import Rows
from convexprobe.problem.certificate import estimated_gap, lower_bound
from convexprobe.problem.objective import Problem
from convexprobe.problem.preconditioners import Identity
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers import (
    LBFGS,
    SAG,
    SVRG,
    Adam,
    Katyusha,
    NewtonCG,
    Record,
    RMSprop,
    Solver,
    solve,
)
from convexprobe.solvers.starts import Previous, Start, best_start

TOL = 1e-4
"""Certified gap at which a run ends, relative to `H(Y)`."""

REACH = 200.0
"""Times `TOL` that an estimated gap may be for the repaired bound to be tried on a peer's point."""


class Ended(Exception):
    """A run is over: certified, or out of time."""


@dataclass(frozen=True)
class Point:
    """A point of a run: what was spent until then, and its gaps relative to `H(Y)`."""

    seconds: float
    passes: float
    true: float
    certified: float


@dataclass(frozen=True)
class Warm:
    """What a warm run is given: the earlier probe, and what its logits cost."""

    previous: Previous
    seconds: float

    @classmethod
    def of(cls, layer: Layer) -> Warm:
        """Fit the checkpoint before, and remember it."""
        probe = cxp.fit_probes({"layer": layer.before}, layer.y, l2=layer.l2, progress=False)
        began = time.process_time()
        memory = cxp.remember(probe, {"layer": layer.before})
        seconds = time.process_time() - began
        w = np.concatenate([np.ravel(probe["layer"].weights), probe["layer"].bias])
        logits = torch.from_numpy(memory.logits["layer"])[None]
        return cls(Previous(torch.from_numpy(w)[None].double(), logits, memory.rows), seconds)


def new_problem(layer: Layer) -> Problem:
    """The layer's problem; its moments are computed anew."""
    return Problem(Rows(layer.x), layer.y, [layer.l2], classes=layer.k)


@dataclass
class Run:
    """The clock and the points of one run.

    Attributes:
        optimum: `F*`, nats.
        entropy: `H(Y)`, nats.
        limit: CPU seconds.
        points: what was recorded.
        extra: seconds and passes spent before the clock started.
    """

    optimum: float
    entropy: float
    limit: float
    points: list[Point] = field(default_factory=list)
    extra: tuple[float, float] = (0.0, 0.0)
    began: float = field(default_factory=time.process_time)
    stood: float = 0.0

    @property
    def seconds(self) -> float:
        """CPU seconds so far."""
        return self.extra[0] + time.process_time() - self.began - self.stood

    def add(self, seconds: float, passes: float, value: float, gap: float) -> None:
        """Keep a point with this objective and certified gap, nats; raise if it is the last."""
        if self.points:  # the best so far, as the loop's records are
            value = min(value, self.points[-1].true * self.entropy + self.optimum)
            gap = min(gap, self.points[-1].certified * self.entropy)
        true = (value - self.optimum) / self.entropy
        self.points.append(Point(seconds, self.extra[1] + passes, true, gap / self.entropy))
        if gap <= TOL * self.entropy or seconds > self.limit:
            raise Ended


def ours(solver: Solver, layer: Layer, run: Run, warm: Warm | None) -> None:
    """Run one of our solvers in its own loop; a textbook one makes no use of the transfer's
    curvature."""
    problem = new_problem(layer)
    start = best_start(problem, warm.previous) if warm else Start(problem.constant_classifier(), [])

    def record(seen: Record) -> None:
        began = time.process_time()
        seconds = run.seconds
        run.add(seconds, seen.passes, float(seen.objective[0]), float(seen.gap[0]))
        run.stood += time.process_time() - began

    plain = isinstance(getattr(solver, "preconditioner", None), Identity)
    inverse = None if plain else start.inverse
    solve(
        problem, solver, start.w, tol=TOL, max_passes=1e5, callbacks=[record], inverse=inverse
    )  # fmt: skip


class Judge:
    """Gives coefficients of any solver their value and certificate, and keeps the best of each."""

    def __init__(self, layer: Layer) -> None:
        self.problem = new_problem(layer)
        self.bound = 0.0

    def __call__(self, coefficients: np.ndarray) -> tuple[float, float]:
        """Objective and certified gap in nats of coefficients `(k, d + 1)`."""
        problem, w = self.problem, torch.from_numpy(np.asarray(coefficients, dtype=np.float64))
        at = problem.evaluate(problem.join(w[None, :, :-1], w[None, :, -1]), keep=True)
        self.bound = max(self.bound, float(lower_bound(problem, at)[0]))
        if float(estimated_gap(problem, at.gradient, at.value)[0]) <= REACH * TOL * float(
            problem.label_entropy[0]
        ):
            sample = Sample.draw(problem, at, problem.n, np.random.default_rng(0))
            self.bound = max(self.bound, float(lower_bound(problem, at, sample)[0]))
        value = float(at.value[0])
        return value, max(value - self.bound, 0.0) + float(at.rounding[0])


def _given(layer: Layer, run: Run, warm: Warm | None) -> Task:
    """The task as our peers are given it, the warm one with coefficients to start from."""
    start = None
    if warm is not None:
        problem = new_problem(layer)
        weights, bias = problem.split(best_start(problem, warm.previous).w)
        start = np.concatenate([weights[0].numpy(), bias[0].numpy()[:, None]], axis=1)
        run.extra = run.extra[0], run.extra[1] + problem.passes
    return Task(layer.x.numpy(), layer.y.numpy(), layer.k, (layer.l2,), start)


def scikit_learn(saga: bool, layer: Layer, run: Run, warm: Warm | None) -> None:
    """scikit-learn's, an epoch at a time; every fifth part more passes are judged."""
    task = _given(layer, run, warm)
    began = time.process_time()
    judge = Judge(layer)
    run.stood += time.process_time() - began
    passes = due = 0.0

    def record(coefficients: np.ndarray, more: float) -> None:
        nonlocal passes, due
        began, seconds = time.process_time(), run.seconds
        passes += more
        if passes >= due or seconds > run.limit:
            due = max(passes + 1.0, 1.2 * passes)
            try:
                run.add(seconds, passes, *judge(coefficients))
            finally:
                run.stood += time.process_time() - began

    if task.start is not None:
        record(task.start, 0.0)
    scikit_learn_sag.run(saga, task, record)  # type: ignore[arg-type]  # has all that is read


def cyanure(layer: Layer, run: Run, warm: Warm | None) -> None:
    """cyanure's SVRG: its iterates cannot be watched, so it runs again with twice the epochs, and
    every run is a point with the seconds of that run alone. Passes are the epochs it reports."""
    from cyanure.estimators import Classifier

    task = _given(layer, run, warm)
    before, judge = run.seconds, Judge(layer)
    for epochs in (2**i for i in range(16)):  # the first of them only warms up
        model = Classifier(
            loss="multiclass-logistic", penalty="l2", lambda_1=layer.l2, fit_intercept=True,
            solver="svrg", tol=1e-12, max_iter=epochs, duality_gap_interval=epochs,
            verbose=False, random_state=0, n_threads=1, warm_start=task.start is not None,
        )  # fmt: skip
        if task.start is not None:
            model.coef_ = np.asfortranarray(task.start[:, :-1].T, dtype=np.float32)
            model.intercept_ = task.start[:, -1:].T.astype(np.float32)
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it did not converge in these epochs
            model.fit(task.x, task.y)
        seconds = before + time.process_time() - began
        if epochs == 1:
            continue
        weights = np.reshape(model.coef_, (task.d, -1)).T
        both = np.concatenate([weights, np.reshape(model.intercept_, (-1, 1))], axis=1)
        run.add(seconds, epochs, *judge(both))
        if before + 2.0 * (seconds - before) > run.limit:
            raise Ended


Method = Callable[[Layer, Run, Warm | None], None]

METHODS: dict[str, Method] = {
    "SAG, scikit-learn": partial(scikit_learn, False),
    "SAGA, scikit-learn": partial(scikit_learn, True),
    "SVRG, cyanure": cyanure,
    "SAG, Identity()": partial(ours, SAG(preconditioner=Identity())),
    "SVRG, Identity()": partial(ours, SVRG(preconditioner=Identity())),
    "Adam": partial(ours, Adam()),
    "RMSProp": partial(ours, RMSprop()),
    "SAG": partial(ours, SAG()),
    "SVRG": partial(ours, SVRG()),
    "Katyusha": partial(ours, Katyusha()),
    "Newton-CG": partial(ours, NewtonCG()),
    "L-BFGS": partial(ours, LBFGS()),
}
TEXTBOOK = tuple(METHODS)[:7]
SCALED = tuple(METHODS)[7:]


def available(name: str) -> bool:
    """Whether a method can run here."""
    return name != "SVRG, cyanure" or find_spec("cyanure") is not None


def measure(
    name: str, layer: Layer, optimum: float, entropy: float, limit: float, warm: Warm | None
) -> list[Point]:
    """Run a method; return its points."""
    run = Run(optimum, entropy, limit)
    if warm is not None:
        run.extra = warm.seconds, 0.5
    with suppress(Ended):
        METHODS[name](layer, run, warm)
    return run.points
