"""convexprobe: every registered solver, and a plain variant of those that take a preconditioner.

The clock starts at the raw activations: set-up, samples, preconditioners and certificates count.
Objective: the package's own, `F`.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.cases import Task, problem_of
from benchmarks.harness.recorder import Recorder
from benchmarks.peers import Peer
from convexprobe.arrays.backend import to_numpy
from convexprobe.problem.objective import Problem
from convexprobe.problem.preconditioners import Identity
from convexprobe.solvers import SOLVERS, Solver
from convexprobe.solvers.path import solve_path
from convexprobe.solvers.solution import Record

MAX_PASSES = 200.0
TOL = 1e-5
STOCHASTIC = {"sag", "saga", "svrg", "katyusha", "adam", "rmsprop"}


class Watched:
    """Wraps a solver to keep each task's latest coefficients, `w` `(m, k, d + 1)`.

    `solve_path` solves a part of the family at a time; penalties tell which tasks these are.
    """

    def __init__(self, solver: Any, task: Task) -> None:
        self.solver, self.l2 = solver, list(task.l2)
        self.w = np.zeros((len(task.l2), task.k, task.d + 1))
        self.gap = np.full(len(task.l2), np.inf)
        self.now: list[int] = []

    def _remember(self, problem: Problem, w: Any) -> None:
        self.now = [self.l2.index(l2) for l2 in problem.host_l2]
        weights, bias = problem.split(w)
        parts = to_numpy(weights), to_numpy(bias)[:, :, None]
        self.w[self.now] = np.concatenate(parts, axis=2)

    def init(self, problem: Problem, w: Any) -> Any:
        state = self.solver.init(problem, w)
        self.family = [self.l2.index(l2) for l2 in problem.host_l2]
        # Wide rows are first solved in the space that they span; only full coefficients are kept.
        if problem.d != self.w.shape[2] - 1:
            return state
        self._remember(problem, state.at.w)
        return state

    def step(self, problem: Problem, w: Any, state: Any) -> Any:
        w, state = self.solver.step(problem, w, state)
        if problem.d == self.w.shape[2] - 1:
            self._remember(problem, state.at.w)
        return w, state


def run(
    solver: Solver,
    task: Task,
    record: Recorder,
    tol: float = TOL,
    max_passes: float = MAX_PASSES,
) -> None:
    """Solve all penalties as one path; the recorded gap is the largest of its tasks."""
    problem = problem_of(task.x, task.y, task.k)
    watched, done = Watched(solver, task), 0.0

    def watch(seen: Record) -> None:
        nonlocal done
        watched.gap[watched.family] = seen.gap / problem.label_entropy
        passes, done = seen.passes - done, seen.passes
        record(watched.w, passes, float(watched.gap.max()))

    solve_path(problem, np.asarray(task.l2), watched, None, tol=tol, max_passes=max_passes,
               max_seconds=2 * record.limit, callbacks=[watch])  # fmt: skip


PEERS = {}
for _name, _class in SOLVERS.items():
    _solver, _noisy = _class(), _name in STOCHASTIC
    _scaled = "preconditioner" in {field.name for field in fields(_class)}
    PEERS[f"convexprobe {_name}"] = Peer(
        partial(run, _solver), family=True, stochastic=_noisy and not _scaled
    )
    if _scaled:
        _plain = replace(_solver, preconditioner=Identity())
        PEERS[f"convexprobe {_name} plain"] = Peer(
            partial(run, _plain), family=True, stochastic=_noisy
        )
