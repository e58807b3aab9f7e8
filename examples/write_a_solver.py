"""Write a solver of your own in one file and use it: preconditioned nonlinear conjugate gradients.

    python examples/write_a_solver.py

A solver is a frozen dataclass of hyperparameters with two methods. `init` evaluates the start;
`step` returns the next point, and the state with the evaluation there. The solve loop does the
rest: clock, budget, certificate, stopping. The first axis of every array counts the tasks: points
are `(m, p)`, values and step lengths `(m,)`. So one solver serves a single probe as well as a path
of a hundred penalties. It only calls functions of `problem.xp`, and so runs on NumPy, torch and
CuPy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import convexprobe as cxp
from convexprobe.problem.objective import Problem
from convexprobe.problem.preconditioners import Curvature, Preconditioner
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers import SOLVERS, SolverState
from convexprobe.solvers.base import inner
from convexprobe.solvers.line_search import line_search

Array = Any  # of whatever library the activations are in


@dataclass
class ConjugateState(SolverState):
    """A solver's state, and in addition `last`, the direction of the last step `(m, p)`."""

    last: Array = None


@dataclass(frozen=True)
class NonlinearCG:
    """Conjugate gradients of Polak and Ribiere, in the preconditioner's metric.

    With `g` the gradient, `P` the preconditioner and `d` the last direction, the next one is
    `P^-1 g + beta d`, `beta = max(0, (g_new - g).P^-1 g_new / g.P^-1 g)` (Nocedal and Wright,
    eq. 5.45). With the line search a step costs one pass. Memory: O(m p), the logits that the line
    search keeps, and the preconditioner.
    """

    preconditioner: Preconditioner = field(default_factory=Curvature)
    seed: int = 0

    def init(self, problem: Problem, w: Array) -> ConjugateState:
        """Evaluate `w`, and build the preconditioner from rows sampled where the curvature is."""
        at = problem.evaluate(w, keep=True)
        sample = Sample.draw(problem, at, 2500, np.random.default_rng(self.seed))
        inverse = self.preconditioner.build(sample)
        return ConjugateState(at, inverse=inverse, last=inverse.solve(at.gradient))

    def step(self, problem: Problem, w: Array, state: ConjugateState) -> tuple[Array, Any]:
        """Take one step for every task."""
        xp, at, inverse = problem.xp, state.at, state.inverse
        assert at is not None and inverse is not None
        new, _ = line_search(problem, at, state.last)
        z, old = inverse.solve(new.gradient), inner(at.gradient, inverse.solve(at.gradient))
        change = inner(new.gradient - at.gradient, z)
        beta = xp.where(old > 0, change / xp.where(old > 0, old, 1.0), 0.0)
        direction = z + xp.clip(beta, 0.0, None)[:, None] * state.last
        # Where that points uphill, use the preconditioned gradient instead.
        downhill = inner(new.gradient, direction) > 0
        direction = xp.where(downhill[:, None], direction, z)
        return new.w, replace(state, at=new, steps=state.steps + 1, last=direction)


# Register the solver. In the package this line stands in convexprobe/solvers/__init__.py, so that
# the tests and benchmarks run the new solver too.
SOLVERS["nonlinear-cg"] = NonlinearCG


def main() -> None:
    pixels, labels = load_digits(return_X_y=True)
    fitted = {
        name: cxp.fit_probes({name: pixels / 16}, labels, name, l2=1e-3, progress=False)[name]
        for name in ("newton-cg", "nonlinear-cg")
    }
    print(cxp.ProbeSet(fitted))


if __name__ == "__main__":
    main()
