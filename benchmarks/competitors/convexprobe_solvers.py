"""Every solver of the registry, and plain variants of those that take a preconditioner.

The clock starts at the raw activations: set-up, samples, preconditioners and certificates count.
Objective: the package's own.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Task
from benchmarks.competitor import Competitor
from benchmarks.record import Recorder
from convexprobe.objective import Problem
from convexprobe.path import solve_path
from convexprobe.preconditioner import Identity
from convexprobe.solve import Record
from convexprobe.solvers import SOLVERS, Solver
from convexprobe.sources import Rows

MAX_PASSES = 200.0
TOL = 1e-5
STOCHASTIC = {"sag", "saga", "svrg", "katyusha", "adam", "rmsprop"}


class Watched:
    """A solver that remembers where each task is. Penalties tell the tasks of a family apart."""

    def __init__(self, solver: Any, task: Task) -> None:
        self.solver, self.l2 = solver, list(task.l2)
        self.w = np.zeros((len(task.l2), task.k, task.d + 1))
        self.gap = np.full(len(task.l2), np.inf)
        self.now: list[int] = []

    def _remember(self, problem: Problem, w: Any) -> None:
        self.now = [self.l2.index(l2) for l2 in problem.host_l2]
        weights, bias = problem.split(w)
        self.w[self.now] = np.concatenate([weights.numpy(), bias.numpy()[:, :, None]], axis=2)

    def init(self, problem: Problem, w: Any) -> Any:
        state = self.solver.init(problem, w)
        if problem.d != self.w.shape[2] - 1:  # wide rows: what counts is what comes back from there
            return state
        self.family = [self.l2.index(l2) for l2 in problem.host_l2]
        self._remember(problem, state.at.w)
        return state

    def step(self, problem: Problem, w: Any, state: Any) -> Any:
        w, state = self.solver.step(problem, w, state)
        if problem.d == self.w.shape[2] - 1:
            self._remember(problem, state.at.w)
        return w, state


def run(solver: Solver, task: Task, record: Recorder) -> None:
    """One solve of the path; the certified gap is the largest of its tasks."""
    # As `fit_probes` does: the path's penalties are given to solve_path, not to the problem.
    problem = Problem(Rows(torch.from_numpy(task.x)), torch.from_numpy(task.y), 0.0, classes=task.k)
    watched, done = Watched(solver, task), 0.0

    def watch(seen: Record) -> None:
        nonlocal done
        watched.gap[watched.family] = seen.gap / problem.label_entropy
        passes, done = seen.passes - done, seen.passes
        record(watched.w, passes, float(watched.gap.max()))

    solve_path(problem, np.asarray(task.l2), watched, None, tol=TOL, max_passes=MAX_PASSES,
               max_seconds=2 * record.limit, callbacks=[watch])  # fmt: skip


COMPETITORS = {}
for _name, _class in SOLVERS.items():
    _solver, _noisy = _class(), _name in STOCHASTIC
    _scaled = "preconditioner" in {field.name for field in fields(_class)}
    COMPETITORS[f"convexprobe {_name}"] = Competitor(
        partial(run, _solver), family=True, stochastic=_noisy and not _scaled
    )
    if _scaled:
        _plain = replace(_solver, preconditioner=Identity())
        COMPETITORS[f"convexprobe {_name} plain"] = Competitor(
            partial(run, _plain), family=True, stochastic=_noisy
        )
