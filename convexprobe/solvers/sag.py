"""Stochastic average gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

from convexprobe.arrays.backend import Array
from convexprobe.solvers.stochastic import Stage, VarianceReduced


@dataclass(frozen=True)
class SAG(VarianceReduced):
    """SAG (Schmidt, Le Roux and Bach 2017, Algorithm 1) with batches and a preconditioner.

    The table holds a sample's residuals, `O(m k s)`, and no gradients. The snapshot's evaluation
    fills it, so the paper's re-weighting by rows seen is not needed. Gradients up to `N` updates
    old still act: at curvature 1 steps are stable up to `pi^2 / (2 N)`, and are cut at `1.5 / N`,
    near the fastest. Costs and memory are those of `solvers.stochastic`. Use it as the probe
    paper's own proposal.
    """

    def walk(self, stage: Stage) -> Array:
        """Steps along the mean of the remembered gradients, the newest included."""
        problem, mean, w = stage.problem, stage.full, stage.snapshot.w
        xp, batches = problem.xp, list(stage.batches)
        rate = xp.clip(stage.rate, None, 1.5 / len(batches))
        for i in stage.order:
            p = batches[i].probabilities(w)
            mean = mean + batches[i].change(p)
            batches[i] = replace(batches[i], table=p)
            w = w - rate * stage.inverse.solve(mean + problem.penalty(w))
        return w
