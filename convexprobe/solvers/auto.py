"""The default solver: Newton's method for small problems and few features, L-BFGS for others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convexprobe.arrays.backend import Array
from convexprobe.problem.objective import Problem
from convexprobe.problem.preconditioners import Curvature
from convexprobe.solvers.base import Solver
from convexprobe.solvers.ladder import MANY, Bought
from convexprobe.solvers.lbfgs import LBFGS, LBFGSState
from convexprobe.solvers.newton_cg import NewtonCG, NewtonState
from convexprobe.solvers.newton_cholesky import NewtonCholesky

FLOPS = 5e6
"""Flops of all tasks' exact Hessians and factors, up to which they take less time than inner
iterations."""

FEATURES = 512
"""Features up to which a dense curvature of all of them takes less time than the passes it saves
L-BFGS, whose steps cost many times an inner iteration of Newton's method; half as many where rows
are fewer than twice the features, as a sketch stands for so few."""

PASS = 1e7
"""Flops of a pass up to which inexact Newton steps begin on more features, too, with a sketch of
`SKETCH` rows: their inner iterations then cost a fraction of a step of L-BFGS."""

ROWS = 1024
"""Rows up to which they begin whatever a pass takes: a sketch stands for so few."""

SKETCH = 128

PASSES, CHEAP, MOST = 30.0, 6e8, 150.0
"""Passes after which a problem is hard for inexact Newton steps, so that L-BFGS goes on: so many
and those that take `CHEAP` flops, which cost less than its calls, but no more than `MOST`, or half
of that with a sketch."""

STEPS, ENTRIES = 200, 8e6
"""Steps of L-BFGS after which a problem is hard for it, too, and exact Newton steps go on, if the
Hessians of all tasks have at most so many entries."""


@dataclass(frozen=True)
class Auto:
    """Exact Newton steps for few parameters, inexact ones for few features or rows and not too many
    classes, else L-BFGS.

    Where inexact Newton steps do not end soon, L-BFGS goes on; where that does not end, exact ones.

    `docs/decisions/solver.md` has the measurements.
    """

    def init(self, problem: Problem, w: Array) -> Any:
        return first(problem).init(problem, w)

    def step(self, problem: Problem, w: Array, state: Any) -> tuple[Array, Any]:
        if isinstance(state, LBFGSState):
            hard = state.steps > STEPS and problem.m * problem.p**2 <= ENTRIES
            return (NewtonCholesky() if hard else LBFGS()).step(problem, w, state)
        if isinstance(state, NewtonState):
            passes, most = problem.passes - state.began, MOST if _is_narrow(problem) else MOST / 2
            if passes > min(PASSES + CHEAP / _flops(problem), most):
                bought = Bought(0, there=passes, since=passes)  # they pay for a better metric
                at, steps, inverse, built = state.at, state.steps, state.inverse, state.built
                state = LBFGSState(at, None, steps, inverse, built, bought=bought)
                return LBFGS().step(problem, w, state)
            return _newton(problem).step(problem, w, state)
        return NewtonCholesky().step(problem, w, state)


def first(problem: Problem) -> Solver:
    """The solver that begins; it asks the family's sizes alone."""
    if float(problem.m) * (problem.n + problem.p) * problem.p**2 <= FLOPS:
        return NewtonCholesky()
    if problem.k > MANY:
        return LBFGS()
    cheap = problem.n <= ROWS or _flops(problem) <= PASS
    return _newton(problem) if _is_narrow(problem) or cheap else LBFGS()


def _newton(problem: Problem) -> NewtonCG:
    return NewtonCG() if _is_narrow(problem) else NewtonCG(Curvature(rank=SKETCH))


def _is_narrow(problem: Problem) -> bool:
    return problem.d <= (FEATURES if problem.n >= 2 * problem.d else FEATURES // 2)


def _flops(problem: Problem) -> float:
    """Those of a product with all rows."""
    return 2.0 * problem.n * problem.d * problem.m * problem.k
