"""Stochastic variance-reduced gradient."""

from __future__ import annotations

from dataclasses import dataclass

from convexprobe._array import Array
from convexprobe.solvers.stochastic import Stage, VarianceReduced


@dataclass(frozen=True)
class SVRG(VarianceReduced):
    """SVRG (Johnson and Zhang 2013, option I), preconditioned as in PROMISE (SketchySVRG).

    The probabilities at the snapshot stand in the table and are never replaced: memory as for
    SAG, a table over the stage's sample. Use it where a step has to stay cheap and `n` is large:
    its second-order work is a build of the preconditioner now and then.
    """

    def walk(self, stage: Stage) -> Array:
        """Steps along unbiased estimates `g = grad F(v) + N change_B(w)`."""
        problem, full, w = stage.problem, stage.full, stage.snapshot.w
        for i in stage.order:
            batch = stage.batches[i]
            change = len(stage.batches) * batch.change(batch.probabilities(w))
            g = full + change + problem.penalty(w)
            w = w - stage.rate * stage.inverse.solve(g)
        return w
