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
from convexprobe.preconditioner import Identity
from convexprobe.solve import Record, solve
from convexprobe.solvers import SOLVERS, Solver
from convexprobe.sources import Rows

MAX_PASSES = 200.0
TOL = 1e-5
STOCHASTIC = {"sag", "saga", "svrg", "katyusha", "adam", "rmsprop"}


class Watched:
    """A solver that remembers where each task is. Penalties tell the tasks of a family apart."""

    def __init__(self, solver: Any, problem: Problem) -> None:
        self.solver, self.l2 = solver, list(problem.host_l2)
        self.w = np.zeros((problem.m, problem.p))

    def _remember(self, problem: Problem, w: Any) -> None:
        self.w[[self.l2.index(l2) for l2 in problem.host_l2]] = w.numpy()

    def init(self, problem: Problem, w: Any) -> Any:
        state = self.solver.init(problem, w)
        self._remember(problem, w if state.at is None else state.at.w)
        return state

    def step(self, problem: Problem, w: Any, state: Any) -> Any:
        w, state = self.solver.step(problem, w, state)
        self._remember(problem, w if state.at is None else state.at.w)
        return w, state


def run(solver: Solver, task: Task, record: Recorder) -> None:
    """One solve of the family; the certified gap is the largest of its tasks."""
    problem = Problem(
        Rows(torch.from_numpy(task.x)), torch.from_numpy(task.y), task.l2, classes=task.k
    )
    watched, done = Watched(solver, problem), 0.0

    def watch(seen: Record) -> None:
        nonlocal done
        weights = watched.w[:, : task.k * task.d].reshape(problem.m, task.k, task.d)
        both = np.concatenate([weights, watched.w[:, task.k * task.d :, None]], axis=2)
        passes, done = seen.passes - done, seen.passes
        record(both, passes, float((seen.gap / problem.label_entropy).max()))

    solve(problem, watched, tol=TOL, max_passes=MAX_PASSES, max_seconds=2 * record.limit,
          callbacks=[watch])  # fmt: skip


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
