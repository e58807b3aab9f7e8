"""Stochastic variance-reduced gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import Array, generator, like
from convexprobe.arrays.ranks import local
from convexprobe.problem.objective import Problem
from convexprobe.solvers.stochastic import Stage, StageState, VarianceReduced


@dataclass(frozen=True)
class SVRG(VarianceReduced):
    """SVRG (Johnson and Zhang 2013, option I), preconditioned as in PROMISE (SketchySVRG).

    The probabilities at the snapshot stand in the table and are never replaced. A step is one pass
    and two over its sample, memory `O(m k s)` for the table. Use it where `n` is large and inner
    systems are to be avoided: its second-order work is a build of the preconditioner now and then.

    Attributes:
        growing: the first snapshots see 1/16, then 1/4 of the rows, if those are enough for a
            sample and the start has no weights yet (Harikandeh et al. 2015, growing batches). Off:
            the stages' own samples are small already (passes to 1e-3 on ten cases with and without,
            geometric mean: 8.5 and 8.1).
        loopless: a stage ends by a coin flip after each update instead of after `epochs` passes
            over its sample (Kovalev, Horvath and Richtarik 2020, Algorithm 1).
    """

    growing: bool = False
    loopless: bool = False

    def init(self, problem: Problem, w: Array) -> StageState:
        """Stages on growing parts of the rows, then as every solver of this kind."""
        weights, _ = problem.split(w)
        if self.growing and not bool(problem.xp.any(weights != 0)):
            for rows in (problem.n // 16, problem.n // 4):
                if self.rows <= rows <= problem.capacity:
                    w = self._on_part(problem, w, rows)
        return super().init(problem, w)

    def _on_part(self, problem: Problem, w: Array, rows: int) -> Array:
        """One stage that sees only some rows; `rows / n` of its passes count."""
        xp = problem.xp
        index = np.sort(generator(self.seed, rows).permutation(problem.n)[:rows])
        index = local(index, problem.own)
        x = problem.rows.take(index)
        at = like(index, x)
        labels = xp.take(problem.labels, at, axis=1)
        shares = None if problem.weights is None else xp.take(problem.weights, at, axis=1)
        part = Problem(
            Rows(x),
            labels,
            problem.host_l2,
            classes=problem.k,
            weights=shares,
            communicator=problem.communicator,
        )
        w, _ = self.step(part, w, super().init(part, w))
        problem.count_passes(part.passes * rows / problem.n)
        return w

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
