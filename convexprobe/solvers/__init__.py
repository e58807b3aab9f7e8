"""The solvers by name. Adding one: a file with its state, `init` and `step`, and a line here."""

from __future__ import annotations

from convexprobe.solvers.adam import Adam
from convexprobe.solvers.auto import Auto
from convexprobe.solvers.base import Solver, State
from convexprobe.solvers.katyusha import Katyusha
from convexprobe.solvers.lbfgs import LBFGS
from convexprobe.solvers.newton_cg import NewtonCG
from convexprobe.solvers.rmsprop import RMSprop
from convexprobe.solvers.sag import SAG
from convexprobe.solvers.saga import SAGA
from convexprobe.solvers.svrg import SVRG

SOLVERS: dict[str, type] = {
    "auto": Auto,
    "newton-cg": NewtonCG,
    "lbfgs": LBFGS,
    "sag": SAG,
    "saga": SAGA,
    "svrg": SVRG,
    "katyusha": Katyusha,
    "adam": Adam,
    "rmsprop": RMSprop,
}

__all__ = [
    "LBFGS", "SAG", "SAGA", "SOLVERS", "SVRG", "Adam", "Auto", "Katyusha", "NewtonCG", "RMSprop",
    "Solver", "State",
]  # fmt: skip
