"""The solvers by name. Adding one: a file with its state, `init` and `step`, and a line here."""

from __future__ import annotations

from convexprobe.solvers.adam import Adam
from convexprobe.solvers.base import Solver, State
from convexprobe.solvers.lbfgs import LBFGS
from convexprobe.solvers.newton_cg import NewtonCG

SOLVERS: dict[str, type] = {
    "newton-cg": NewtonCG,
    "lbfgs": LBFGS,
    "adam": Adam,
}

__all__ = ["LBFGS", "SOLVERS", "Adam", "NewtonCG", "Solver", "State"]
