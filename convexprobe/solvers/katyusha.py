"""Katyusha: SVRG with negative momentum."""

from __future__ import annotations

from dataclasses import dataclass

from convexprobe._arguments import check_real
from convexprobe.arrays.backend import Array
from convexprobe.solvers.stochastic import Stage, VarianceReduced


@dataclass(frozen=True)
class Katyusha(VarianceReduced):
    """Katyusha (Allen-Zhu 2017; in the form of Kovalev, Horvath and Richtarik 2020, Algorithm 2).

    Gradients are taken at `momentum * z + v/2 + (1/2 - momentum) * y`: `y` follows the steps, `z`
    their sum, and the snapshot `v` pulls back, which bounds the noise of accelerated steps. The
    strong convexity in the preconditioner's norm is unknown, so `momentum` is a constant and `z` is
    not shrunk. Costs and memory are those of SVRG; use it with a poor preconditioner.

    Attributes:
        momentum: theta_1 of the paper.
    """

    momentum: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        where = "Katyusha(momentum=)"
        if not 0.0 < check_real(where, self.momentum) <= 0.5:
            raise ValueError(f"{where}: expected more than 0, at most 0.5, found {self.momentum}")

    def walk(self, stage: Stage) -> Array:
        """Coupled steps: `z` by `2 / (3 theta_1 L)`, which moves `y` by `2 / (3 L)`."""
        problem, full, v = stage.problem, stage.full, stage.snapshot.w
        y = z = v
        for i in stage.order:
            w = self.momentum * z + 0.5 * v + (0.5 - self.momentum) * y
            batch = stage.batches[i]
            change = len(stage.batches) * batch.change(batch.probabilities(w))
            g = full + change + problem.penalty(w)
            new = z - (stage.rate / (1.5 * self.momentum)) * stage.inverse.solve(g)
            y, z = w + self.momentum * (new - z), new
        return y
