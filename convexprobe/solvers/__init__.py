"""The solvers by name. Adding one: a file with its state, `init` and `step`, and a line here.

`"auto"` is the one that the benchmark recommends: newton-cg, whatever the rows, features, classes,
tasks, dtype and device. What depends on those is decided inside: the sample's size by rows and
features, the form of the preconditioner by features, tasks and classes, and few wide rows are first
solved in the space that they span. Certified to 1e-3 / 1e-5 on one thread, CPU seconds of newton-cg
and of lbfgs, the runner-up: 1 000 classes 4.2 / 6.7 and 14.3 / 15.2; 4 783 x 6 272 activations of
an untrained layer 1.8 / 2.3 and 2.0 / 2.9, of a trained one 2.8 / 4.2 and 3.1 / 4.8.
"""

from __future__ import annotations

from difflib import get_close_matches

from convexprobe.solvers.adam import Adam
from convexprobe.solvers.base import Solver, SolverState
from convexprobe.solvers.katyusha import Katyusha
from convexprobe.solvers.lbfgs import LBFGS
from convexprobe.solvers.newton_cg import NewtonCG
from convexprobe.solvers.rmsprop import RMSprop
from convexprobe.solvers.sag import SAG
from convexprobe.solvers.saga import SAGA
from convexprobe.solvers.svrg import SVRG

SOLVERS: dict[str, type] = {
    "auto": NewtonCG,
    "newton-cg": NewtonCG,
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
        ValueError: no solver has this name; the message has the nearest name and all of them.
    """
    if not isinstance(solver, str):
        return solver
    if solver not in SOLVERS:
        near = get_close_matches(solver, SOLVERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"solver: unknown name {solver!r}{hint} (known: {', '.join(SOLVERS)})")
    return SOLVERS[solver]()


__all__ = [
    "LBFGS", "SAG", "SAGA", "SOLVERS", "SVRG", "Adam", "Katyusha", "NewtonCG", "RMSprop",
    "Solver", "SolverState",
]  # fmt: skip
