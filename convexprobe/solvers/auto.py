"""The default solver: one for small problems, one for all others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from convexprobe.arrays.backend import Array
from convexprobe.problem.objective import Problem
from convexprobe.solvers.base import Solver
from convexprobe.solvers.lbfgs import LBFGS
from convexprobe.solvers.newton_cholesky import NewtonCholesky

FLOPS = 5e7
"""Flops of an exact Hessian up to which Newton's few steps take less time than others' many."""


@dataclass(frozen=True)
class Auto:
    """Exact Newton steps for small problems, L-BFGS for others; see `docs/decisions/solver.md`.

    Attributes:
        small: for problems whose Hessian takes at most `FLOPS`.
        large: for all others.
    """

    small: Solver = field(default_factory=NewtonCholesky)
    large: Solver = field(default_factory=LBFGS)

    def _chosen(self, problem: Problem) -> Solver:
        return self.small if float(problem.n) * problem.p**2 <= FLOPS else self.large

    def init(self, problem: Problem, w: Array) -> Any:
        return self._chosen(problem).init(problem, w)

    def step(self, problem: Problem, w: Array, state: Any) -> tuple[Array, Any]:
        return self._chosen(problem).step(problem, w, state)
