"""The solvers by name, and the declared place for a solver of your own.

A solver is a frozen record of settings with two methods, `init` and `step` (see `Solver`). It sees
parameters `w`, `(m, p)`, and a `Problem`; the loop (`solve`) owns the clock, the budget, the
certificate and stopping. A solver outside this package imports from here alone:

| to write a solver | what it is |
|---|---|
| `Problem`, `Evaluation` | `problem.evaluate(w)` gives value, gradient and more; a pass |
| `Solver`, `SolverState` | the two methods, and what is carried from step to step |
| `Sample`, `sample_size` | rows drawn where the curvature is, and how many to draw |
| `Preconditioner`, `Inverse` | a recipe for an approximate inverse Hessian, and the inverse |
| `Identity`, `Diagonal`, `Curvature`, `EigenBlocks` | the preconditioners there are |
| `fresh_inverse` | the state's preconditioner, rebuilt when the loss has fallen far |
| `line_search`, `conjugate_gradient`, `inner` | what the solvers share |
| `generator` | a private random stream for a seed and a step |
| `SOLVERS`, `by_name` | the registry: one line makes a solver known to `fit_probes` |
| `solve`, `Solution`, `Status`, `Record` | the loop and what it returns |

`examples/write_a_solver.py` is a solver in one file. In this package a new one is a file with its
state, `init` and `step`, and a line in `SOLVERS`; the tests and benchmarks then run over it.

`"auto"` is `Auto`: Newton's method for small problems and few features, L-BFGS for all others.
"""

from __future__ import annotations

from convexprobe._arguments import check_choice
from convexprobe.arrays.backend import Array, generator
from convexprobe.problem.eigen_blocks import EigenBlocks
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.preconditioners import (
    Curvature,
    Diagonal,
    Identity,
    Inverse,
    Preconditioner,
)
from convexprobe.problem.row_sample import Sample, sample_size
from convexprobe.solvers.adam import Adam
from convexprobe.solvers.auto import Auto
from convexprobe.solvers.base import Solver, SolverState, fresh_inverse, inner
from convexprobe.solvers.conjugate_gradient import conjugate_gradient
from convexprobe.solvers.katyusha import Katyusha
from convexprobe.solvers.lbfgs import LBFGS
from convexprobe.solvers.line_search import line_search
from convexprobe.solvers.loop import solve
from convexprobe.solvers.newton_cg import NewtonCG
from convexprobe.solvers.newton_cholesky import NewtonCholesky
from convexprobe.solvers.rmsprop import RMSprop
from convexprobe.solvers.sag import SAG
from convexprobe.solvers.saga import SAGA
from convexprobe.solvers.solution import Record, Solution, Status
from convexprobe.solvers.svrg import SVRG

SOLVERS: dict[str, type] = {
    "auto": Auto,
    "newton-cg": NewtonCG,
    "newton-cholesky": NewtonCholesky,
    "lbfgs": LBFGS,
    "sag": SAG,
    "saga": SAGA,
    "svrg": SVRG,
    "katyusha": Katyusha,
    "adam": Adam,
    "rmsprop": RMSprop,
}


def by_name(solver: str | Solver) -> Solver:
    """A solver from its name, with its default settings; a configured solver as it is.

    Raises:
        TypeError: neither a name nor a solver: a class that was not called, say.
        ValueError: no solver has this name; the message has the nearest name and all of them.
    """
    if isinstance(solver, str):
        return SOLVERS[check_choice("solver", solver, SOLVERS)]()
    if isinstance(solver, type) or not all(hasattr(solver, name) for name in ("init", "step")):
        call = f"; call it: {solver.__name__}()" if isinstance(solver, type) else ""
        raise TypeError(f"solver: expected a name or a configured solver, found {solver!r}{call}")
    return solver


__all__ = [
    "LBFGS", "SAG", "SAGA", "SOLVERS", "SVRG", "Adam", "Array", "Auto", "Curvature", "Diagonal",
    "EigenBlocks", "Evaluation", "Identity", "Inverse", "Katyusha", "NewtonCG", "NewtonCholesky",
    "Preconditioner", "Problem", "RMSprop", "Record", "Sample", "Solution", "Solver", "SolverState",
    "Status", "by_name", "conjugate_gradient", "fresh_inverse", "generator", "inner", "line_search",
    "sample_size", "solve",
]  # fmt: skip
