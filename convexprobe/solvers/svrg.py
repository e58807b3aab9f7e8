"""Stochastic variance-reduced gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexprobe._arguments import check_bool
from convexprobe.arrays.backend import Array
from convexprobe.solvers.stochastic import Stage, VarianceReduced


@dataclass(frozen=True)
class SVRG(VarianceReduced):
    """SVRG (Johnson and Zhang 2013, option I), preconditioned as in PROMISE (SketchySVRG).

    The table keeps the probabilities at the snapshot. Costs and memory are those of
    `solvers.stochastic`. Use it for large `n` without inner systems: its only second-order work is
    to build the preconditioner now and then.

    Attributes:
        loopless: end a stage by a coin flip after each update instead of after `epochs` passes over
            its sample (Kovalev, Horvath and Richtarik 2020, Algorithm 1).
    """

    loopless: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bool("SVRG(loopless=)", self.loopless)

    def order(self, batches: int, rng: np.random.Generator) -> np.ndarray:
        """Shuffled epochs, or independent draws until the coin falls."""
        if not self.loopless:
            return super().order(batches, rng)
        return rng.integers(batches, size=rng.geometric(1.0 / (self.epochs * batches)))

    def walk(self, stage: Stage) -> Array:
        """Steps along unbiased estimates `g = grad F(v) + N change_B(w)`."""
        problem, full, w = stage.problem, stage.full, stage.snapshot.w
        for i in stage.order:
            batch = stage.batches[i]
            change = len(stage.batches) * batch.change(batch.probabilities(w))
            g = full + change + problem.penalty(w)
            w = w - stage.rate * stage.inverse.solve(g)
        return w
