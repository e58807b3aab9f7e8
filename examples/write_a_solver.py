"""Write a solver in one file, and use it: Barzilai and Borwein's gradient method, preconditioned.

    python examples/write_a_solver.py

A solver is a frozen record of hyperparameters with two methods. `init` evaluates at the start;
`step` returns the next point, and the state with the evaluation there. Clock, budget, certificate
and stopping are the loop's. Every array has the tasks first: points are `(m, p)`, values and step
lengths `(m,)`, so one solver serves one probe and a path of a hundred penalties alike, and writing
only to `problem.xp` it runs on NumPy, torch and CuPy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import convexprobe as cxp
from convexprobe.objective import Problem
from convexprobe.preconditioner import Curvature, Inverse, Preconditioner
from convexprobe.sample import Sample
from convexprobe.solvers import SOLVERS, State
from convexprobe.solvers.base import inner, line_search

Array = Any  # of whatever library the activations are in


@dataclass
class BBState(State):
    """Attributes: `inverse`, the metric; `first`, the step lengths to try first, `(m,)`."""

    inverse: Inverse | None = None
    first: Array = None


@dataclass(frozen=True)
class BarzilaiBorwein:
    """Gradient steps as long as the curvature just met allows, in the preconditioner's metric.

    With `s` and `y` the last changes of point and gradient and `P` the preconditioner, the next
    step is `(s.y / y.P^-1 y) P^-1 grad F` (Barzilai and Borwein 1988), shortened until the value
    falls. A step costs a pass, and another for each time it is shortened. Memory
    O(m p), and the preconditioner's.
    """

    preconditioner: Preconditioner = field(default_factory=Curvature)
    seed: int = 0

    def init(self, problem: Problem, w: Array) -> BBState:
        """Evaluate at `w`, and build the metric from rows drawn where the curvature is."""
        at = problem.evaluate(w)
        sample = Sample.draw(problem, at, 2500, np.random.default_rng(self.seed))
        inverse = self.preconditioner.build(sample)
        return BBState(at, None, 0, inverse, problem.xp.ones_like(at.value))

    def step(self, problem: Problem, w: Array, state: BBState) -> tuple[Array, BBState]:
        """One step of every task."""
        xp, at, inverse = problem.xp, state.at, state.inverse
        assert at is not None and inverse is not None
        new, _ = line_search(problem, at, inverse.solve(at.gradient), state.first)
        s, y = new.w - at.w, new.gradient - at.gradient
        length, scale = inner(s, y), inner(y, inverse.solve(y))
        moved = (length > 0) & (scale > 0)  # a task that could not move starts again from 1
        first = xp.where(moved, length / xp.where(moved, scale, 1.0), 1.0)
        return new.w, BBState(new, None, state.steps + 1, inverse, first)


# The registry line. In the package it stands in convexprobe/solvers/__init__.py, and the tests and
# benchmarks then run over the new solver with all the others.
SOLVERS["barzilai-borwein"] = BarzilaiBorwein


def main() -> None:
    pixels, labels = load_digits(return_X_y=True)
    fitted = {
        name: cxp.fit_probes({name: pixels / 16}, labels, name, l2=1e-3, progress=False)[name]
        for name in ("newton-cg", "barzilai-borwein")
    }
    print(cxp.ProbeSet(fitted))


if __name__ == "__main__":
    main()
