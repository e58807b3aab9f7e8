"""The default: the solver that the benchmark's table recommends for the problem at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convexprobe._array import Array
from convexprobe.objective import Problem
from convexprobe.solvers.base import Solver
from convexprobe.solvers.lbfgs import LBFGS
from convexprobe.solvers.newton_cg import NewtonCG

MANY_CLASSES = 256
"""Classes beyond which one curvature matrix for all of them is a poor stand-in for the Hessian.

`python -m benchmarks.run`, seconds to 1e-3: with 100 classes newton-cg 0.20, lbfgs 0.24; with 1 000
newton-cg 4.8 (145 passes, most of them inner iterations), lbfgs 1.5 (16).
"""


@dataclass(frozen=True)
class Auto:
    """`newton-cg`, or `lbfgs` beyond 256 classes.

    Both certify, need nothing chosen and run wherever the rows are. Rows, features, tasks, dtype
    and device do not enter: over 784 to 5 000 features, 500 to 20 000 rows and conditions of 1e2 to
    1e8 the benchmark has newton-cg ahead or within a fifth of lbfgs.

    Attributes:
        seed: of the chosen solver.
    """

    seed: int = 0

    def chosen(self, problem: Problem) -> Solver:
        """The solver; it depends only on what stays when tasks leave a family."""
        if problem.k > MANY_CLASSES:
            return LBFGS(seed=self.seed)
        return NewtonCG(seed=self.seed)

    def init(self, problem: Problem, w: Array) -> Any:
        """That solver's state."""
        return self.chosen(problem).init(problem, w)

    def step(self, problem: Problem, w: Array, state: Any) -> tuple[Array, Any]:
        """That solver's step."""
        return self.chosen(problem).step(problem, w, state)
