"""What Adam and RMSprop share: epochs of updates scaled by their own history, and a schedule.

Columns are scaled to a root mean square of 1, so that an update at rate `r` moves a logit by about
`r`; the penalty stays in the original coordinates. There is no schedule to choose: a task's rate is
halved after an epoch that did not lower its objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from convexprobe.arrays.backend import Array, generator
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_sample import Sample
from convexprobe.solvers.base import SolverState, check_fraction, check_settings


@dataclass
class AdaptiveState(SolverState):
    """Attributes: `rate` of each task, `(m,)`; `first` and `second`, running means of gradients and
    of their squares, `(m, p)`; `updates` made; `scale`, each parameter's unit, `(m, p)`."""

    rate: Array = None
    first: Array = None
    second: Array = None
    updates: int = 0
    scale: Array = None


@dataclass(frozen=True)
class Adaptive(ABC):
    """A solver of scaled updates; see the module's docstring.

    Attributes:
        batch: rows of a minibatch, at most a 32nd of all; None for all rows.
        rate: first learning rate, in logits an update.
        seed: of the shuffles.
        decay: what an update keeps of the running mean of squared gradients.
    """

    batch: int | None = 256
    rate: float = 0.3
    seed: int = 0
    decay: float = 0.9

    def __post_init__(self) -> None:
        check_settings(self, batch=1, rate=0.0)
        for decay in self.decay if isinstance(self.decay, tuple) else (self.decay,):
            check_fraction(self, "decay", decay)

    @abstractmethod
    def moments(
        self, g: Array, first: Array, second: Array, updates: int
    ) -> tuple[Array, Array, Array]:
        """The update's direction and the new running means, for the gradient `g`, `(m, p)`, and
        the number of updates, this one included."""

    def init(self, problem: Problem, w: Array) -> AdaptiveState:
        """Evaluate at `w`, and measure the columns on a sample of rows."""
        xp, at = problem.xp, problem.evaluate(w)
        sample = Sample.draw(problem, at, 2048, generator(self.seed, 0))
        (square,) = problem.all_reduce(xp.sum(sample.x * sample.x, axis=0))
        rms = xp.sqrt(square / sample.rows) * problem.d**0.5
        unit = xp.where(rms > 0, 1.0 / xp.where(rms > 0, rms, 1.0), 0.0)
        shape = (problem.m, problem.k)
        weights = xp.broadcast_to(xp.astype(unit, xp.float64)[None, None, :], (*shape, problem.d))
        scale = problem.join(weights, xp.ones(shape, dtype=xp.float64, device=unit.device))
        zero = xp.zeros_like(at.w)
        return AdaptiveState(
            at, rate=self.rate + 0.0 * at.value, first=zero, second=zero, scale=scale
        )

    def step(self, problem: Problem, w: Array, state: AdaptiveState) -> tuple[Array, AdaptiveState]:
        assert state.at is not None
        first, second, updates = state.first, state.second, state.updates
        for rows in self._batches(problem.n, state.steps):
            updates += 1
            g = state.at.gradient if rows is None else problem.batch_gradient(w, rows)
            g = g * state.scale
            direction, first, second = self.moments(g, first, second, updates)
            w = w - state.rate[:, None] * state.scale * direction
        at = problem.evaluate(w)
        fell = at.value < state.at.value
        rate = problem.xp.where(fell, state.rate, 0.5 * state.rate)
        new = replace(state, at=at, steps=state.steps + 1, rate=rate, updates=updates)
        return at.w, replace(new, first=first, second=second)

    def _batches(self, n: int, step: int) -> list[np.ndarray] | list[None]:
        """The rows of each update of an epoch; None for the gradient at hand."""
        if self.batch is None:
            return [None]
        size = min(self.batch, max(16, n // 32))
        order = generator(self.seed, step + 1).permutation(n)
        return [order[start : start + size] for start in range(0, n, size)]
