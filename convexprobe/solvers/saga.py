"""SAGA."""

from __future__ import annotations

from dataclasses import dataclass, replace

from convexprobe.arrays.backend import Array
from convexprobe.solvers.stochastic import Stage, VarianceReduced


@dataclass(frozen=True)
class SAGA(VarianceReduced):
    """SAGA (Defazio, Bach and Lacoste-Julien 2014, eq. 1), preconditioned as in PROMISE.

    Unbiased like SVRG, but the table and the mean follow every update. Costs and memory are those
    of SAG. Use it where SAG is unsteady.
    """

    def walk(self, stage: Stage) -> Array:
        """Steps along `mean + N change_B(w)`; the mean and the table then take in the change."""
        problem, mean, w = stage.problem, stage.full, stage.snapshot.w
        batches = list(stage.batches)
        for i in stage.order:
            p = batches[i].probabilities(w)
            change = batches[i].change(p)
            g = mean + len(batches) * change + problem.penalty(w)
            mean, batches[i] = mean + change, replace(batches[i], table=p)
            w = w - stage.rate * stage.inverse.solve(g)
        return w
