"""Write a solver in one file, and use it: nonlinear conjugate gradients, preconditioned.

    python examples/write_a_solver.py

A solver is a frozen record of hyperparameters with two methods. `init` evaluates at the start;
`step` returns the next point, and the state with the evaluation there. Clock, budget, certificate
and stopping are the loop's. Every array has the tasks first: points are `(m, p)`, values and step
lengths `(m,)`, so one solver serves one probe and a path of a hundred penalties alike, and writing
only to `problem.xp` it runs on NumPy, torch and CuPy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sklearn.datasets import load_digits

import convexprobe as cxp
from convexprobe.solvers import (
    SOLVERS,
    Array,
    Curvature,
    Preconditioner,
    Problem,
    Sample,
    SolverState,
    generator,
    inner,
    line_search,
)


@dataclass
class ConjugateState(SolverState):
    """Attributes: `last`, the direction of the last step, `(m, p)`."""

    last: Array = None


@dataclass(frozen=True)
class NonlinearCG:
    """Conjugate gradients of Polak and Ribiere, in the preconditioner's metric.

    With `g` the gradient, `P` the preconditioner and `d` the last direction, the next one is
    `P^-1 g + beta d`, `beta = max(0, (g_new - g).P^-1 g_new / g.P^-1 g)` (Nocedal and Wright,
    eq. 5.45). The line search makes a step cost one pass. Memory O(m p), the logits that the line
    search keeps, and the preconditioner's.
    """

    preconditioner: Preconditioner = field(default_factory=Curvature)
    seed: int = 0

    def init(self, problem: Problem, w: Array) -> ConjugateState:
        """Evaluate at `w`, and build the metric from rows drawn where the curvature is."""
        at = problem.evaluate(w, keep=True)
        sample = Sample.draw(problem, at, 2500, generator(self.seed))
        inverse = self.preconditioner.build(sample)
        return ConjugateState(at, inverse=inverse, last=inverse.solve(at.gradient))

    def step(self, problem: Problem, w: Array, state: ConjugateState) -> tuple[Array, SolverState]:
        """One step of every task."""
        xp, at, inverse = problem.xp, state.at, state.inverse
        assert at is not None and inverse is not None
        new, _ = line_search(problem, at, state.last)
        z, old = inverse.solve(new.gradient), inner(at.gradient, inverse.solve(at.gradient))
        change = inner(new.gradient - at.gradient, z)
        beta = xp.where(old > 0, change / xp.where(old > 0, old, 1.0), 0.0)
        direction = z + xp.clip(beta, 0.0, None)[:, None] * state.last
        # Where that points uphill, the steepest descent of the metric.
        downhill = inner(new.gradient, direction) > 0
        direction = xp.where(downhill[:, None], direction, z)
        return new.w, replace(state, at=new, steps=state.steps + 1, last=direction)


# The registry line. In the package it stands in convexprobe/solvers/__init__.py, and the tests and
# benchmarks then run over the new solver with all the others.
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
