"""Stochastic average gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

from convexprobe.arrays.backend import Array
from convexprobe.solvers.stochastic import Stage, VarianceReduced


@dataclass(frozen=True)
class SAG(VarianceReduced):
    """SAG (Schmidt, Le Roux and Bach 2017, Algorithm 1) with batches and a preconditioner.

    The table holds residuals of a stage's sample, not gradients: `O(m k s)`. It starts complete,
    from the evaluation at the snapshot, so that the paper's re-weighting by rows seen has nothing
    to correct. Gradients up to `N` updates old still act: with curvature 1 the delay is stable up
    to steps of `pi^2 / (2 N)`, and steps are at most `1.5 / N`, near the fastest.
    A step is one pass and two over its sample; memory as in `solvers.stochastic`. Use
    it as the probe paper's own proposal.
    """

    def walk(self, stage: Stage) -> Array:
        """Steps along the mean of the gradients remembered, the newest among them."""
        problem, mean, w = stage.problem, stage.full, stage.snapshot.w
        xp, batches = problem.xp, list(stage.batches)
        rate = xp.clip(stage.rate, None, 1.5 / len(batches))
        for i in stage.order:
            p = batches[i].probabilities(w)
            mean = mean + batches[i].change(p)
            batches[i] = replace(batches[i], table=p)
            w = w - rate * stage.inverse.solve(mean + problem.penalty(w))
        return w
