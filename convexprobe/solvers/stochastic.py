"""What SAG, SAGA, SVRG and Katyusha share: a stage of small steps between two evaluations.

At an evaluated point `v`, the snapshot, a stage draws rows in proportion to their uncertainty
(`Sample.draw`, as near a solution uniform batches would miss the few rows with curvature) and cuts
them into `N` batches. With `q_i` the inclusion probabilities, batch `B` measures

    change_B(w) = (1/S) sum_{i in B} (s_i / q_i) (P_i(w) - T_i) [x_i; 1]^T,

where `T_i` are the probabilities remembered for row i, at first `P_i(v)`; the labels cancel. A
solver walks `w <- w - P^-1 g / L`, and makes its estimate `g` from the exact gradient at `v` and
these changes. A line search over all rows, from `v` towards the last iterate, ends the stage: no
stage raises the objective, and the search's evaluation is the next snapshot.

`P` is the preconditioner and `L` the smoothness of a batch in its norm, as in PROMISE (Frangella,
Rathore, Zhao and Udell 2024): the largest eigenvalue of `P^-1 H_B` at the snapshot, by power
iteration, mean of two batches. If the line search shortens a stage, `L` was too small: it is
doubled, and decays slowly.

A step is a stage: one pass for its evaluation, and `epochs` passes over the sample, whose size does
not grow with `n`. Memory beside the rows: the sample with its probabilities, `O(s (d + m k))`, a
few vectors `O(m p)`, and the preconditioner's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np

from convexprobe.arrays.backend import Array, generator, like
from convexprobe.arrays.ranks import local
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.preconditioners import Curvature, Inverse, Preconditioner
from convexprobe.problem.pullback import pullback
from convexprobe.problem.row_sample import Sample, sample_size
from convexprobe.problem.softmax import curvature_product, softmax_
from convexprobe.solvers.base import SolverState, check_settings, fresh_inverse, inner
from convexprobe.solvers.line_search import line_search

BATCH = 256
"""Rows of a batch, or a 32nd of the sample if that is fewer."""

POWER_ITERATIONS = 5


@dataclass(frozen=True)
class MiniBatch:
    """Rows of one update.

    Attributes:
        problem: the family.
        x: the rows, `(b, d)`.
        table: their remembered probabilities, `(m, k, b)`.
        weight: `s_i / (S q_i)`, `(m or 1, b)`.
    """

    problem: Problem
    x: Array
    table: Array
    weight: Array

    def probabilities(self, w: Array) -> Array:
        """At `w`, `(m, k, b)`; half a pass over the batch."""
        return softmax_(self.problem.logits(w, self.x))

    def change(self, p: Array) -> Array:
        """`change_B` for the probabilities `p`, `(m, p)`; half a pass over the batch."""
        return self._pullback(p - self.table)

    def curvature(self, v: Array) -> Array:
        """The loss's Hessian on the batch, at the remembered probabilities, times `v`, `(m, p)`."""
        return self._pullback(curvature_product(self.table, self.problem.directions(v, self.x)))

    def _pullback(self, residual: Array) -> Array:
        pulled = pullback(self.problem, residual * self.weight[:, None, :], self.x)
        return self.problem.all_reduce(pulled)[0]


@dataclass(frozen=True)
class Stage:
    """What a solver walks with between two evaluations.

    Attributes:
        problem: the family.
        snapshot: the evaluation at the stage's start.
        batches: of the sample; sums over all of them stand for all rows.
        order: which batch each update takes.
        inverse: `P^-1`.
        rate: `1 / L`, `(m, 1)`.
    """

    problem: Problem
    snapshot: Evaluation
    batches: list[MiniBatch]
    order: list[int]
    inverse: Inverse
    rate: Array

    @property
    def full(self) -> Array:
        """The loss's gradient at the snapshot, without the penalty's, `(m, p)`."""
        return self.snapshot.gradient - self.problem.penalty(self.snapshot.w)


@dataclass
class StageState(SolverState):
    """Attributes: `caution`, a factor on `L`, `(m,)`."""

    caution: Array = None


@dataclass(frozen=True)
class VarianceReduced(ABC):
    """A solver that walks in stages; see the module's docstring.

    Attributes:
        preconditioner: the metric of the steps.
        epochs: how often a stage goes through its sample.
        rows: rows of the sample, or `4 d` if that is more (`d` counted up to 1 024).
        seed: of all draws.
    """

    preconditioner: Preconditioner = field(default_factory=Curvature)
    epochs: int = 2
    rows: int = 2500
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, epochs=1, rows=1)

    @abstractmethod
    def walk(self, stage: Stage) -> Array:
        """The stage's last iterate, `(m, p)`."""

    def order(self, batches: int, rng: np.random.Generator) -> np.ndarray:
        """Which batch each update of a stage takes."""
        return np.concatenate([rng.permutation(batches) for _ in range(self.epochs)])

    def init(self, problem: Problem, w: Array) -> StageState:
        """Evaluate at `w` and draw the first sample."""
        at = problem.evaluate(w, keep=True)
        caution = problem.xp.ones_like(at.value)
        return StageState(at, self._draw(problem, at, 0), built=at.loss, caution=caution)

    def step(self, problem: Problem, w: Array, state: StageState) -> tuple[Array, StageState]:
        xp, at, sample = problem.xp, state.at, state.sample
        assert at is not None and sample is not None
        inverse, built = fresh_inverse(state, partial(self.preconditioner.build, sample))
        rng = generator(self.seed, state.steps, 1)
        batches = cut(sample, rng)
        order = self.order(len(batches), rng)
        smoothness = state.caution * largest_curvature(batches, inverse, rng)
        rate = (1.0 / smoothness)[:, None]
        last = self.walk(Stage(problem, at, batches, order.tolist(), inverse, rate))
        finite = xp.all(xp.isfinite(last), axis=1)[:, None]
        direction = xp.where(finite, at.w - last, 0.0)
        new, t = line_search(problem, at, direction)
        caution = xp.where(t < 0.6, 2.0 * state.caution, xp.clip(0.8 * state.caution, 1.0, None))
        steps = state.steps + 1
        drawn = self._draw(problem, new, steps)
        return new.w, StageState(new, drawn, steps, inverse, built, caution)

    def _draw(self, problem: Problem, at: Evaluation, step: int) -> Sample:
        size = sample_size(problem.n, problem.d, self.rows)
        return Sample.draw(problem, at, size, generator(self.seed, step))


def cut(sample: Sample, rng: np.random.Generator) -> list[MiniBatch]:
    """The sample in random order, cut into batches."""
    xp, rows = sample.problem.xp, sample.rows
    order = rng.permutation(rows)
    count = max(-(-rows // BATCH), min(32, rows // 8), 1)
    own = [
        local(part, sample.own)
        for part in np.split(order, [rows * j // count for j in range(1, count)])
    ]
    ends = np.cumsum([0, *(len(part) for part in own)]).tolist()
    whole = like(np.concatenate(own), sample.x)  # to a device in one copy
    batches = []
    for a, b in pairwise(ends):
        index = whole[a:b]
        x, p = xp.take(sample.x, index, axis=0), xp.take(sample.p, index, axis=2)
        weight = xp.take(sample.weight, index, axis=1)
        batches.append(MiniBatch(sample.problem, x, p, weight))
    return batches


def largest_curvature(
    batches: list[MiniBatch], inverse: Inverse, rng: np.random.Generator
) -> Array:
    """The largest eigenvalue of `P^-1 H_B`, mean of two batches, `(m,)`."""
    total: Array = 0.0
    for batch in batches[:2]:
        problem, xp = batch.problem, batch.problem.xp
        y = like(rng.standard_normal((1, problem.p)), batch.table, xp.float64)
        y = xp.broadcast_to(y, (batch.table.shape[0], problem.p))
        value = xp.zeros_like(problem.l2)
        for _ in range(POWER_ITERATIONS):
            q = inverse.solve(y)
            norm = xp.sqrt(inner(q, y))  # q^T P q, because y = P q
            q = q / xp.where(norm > 0, norm, 1.0)[:, None]
            y = len(batches) * batch.curvature(q) + problem.penalty(q)
            value = inner(q, y)
        total = total + value
    mean = total / len(batches[:2])
    return xp.where(mean > 0, mean, 1.0)
