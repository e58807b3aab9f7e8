"""Rows drawn where the curvature is: a cheap stand-in for all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import Array, cast, like, to_numpy
from convexprobe.arrays.ranks import Communicator
from convexprobe.problem.linear_model import Pullback
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.softmax import curvature_product, softmax_
from convexprobe.problem.tasks import PerTask, take_own, take_tasks


@dataclass(frozen=True)
class Sample(PerTask):
    """Rows held together with their probabilities at one point: a cheap stand-in for all rows.

    Attributes:
        problem: the family.
        index: which of this rank's rows, host `(s,)`.
        own: where they stand among the rows that all ranks drew.
        rows: how many all ranks drew.
        x: the rows, `(s, d)`.
        p: probabilities at the point, `(m, k, s)`.
        share: each row's own weight `s_i / S`, `(m or 1, s)`.
        inverse_probability: of being drawn, `(s,)`; `share * inverse_probability` makes sums
            unbiased.
    """

    problem: Problem
    index: np.ndarray
    own: slice
    rows: int
    x: Array
    p: Array
    share: Array
    inverse_probability: Array

    @classmethod
    def draw(cls, problem: Problem, at: Evaluation, size: int, rng: np.random.Generator) -> Sample:
        """Draw about `size` rows where the curvature is, with their probabilities at `at.w`.

        Row i enters with probability `min(1, c q_i)` (Poisson sampling), where `q_i` is nine parts
        its uncertainty (relative to the task's mean, averaged over the tasks) and one part a
        constant. The inverse of that probability weighs the row, so that sums stay unbiased. Near a
        solution few rows are uncertain: all of those enter, and sums are almost exact.
        Costs half a pass over the rows drawn, or none if the evaluation has logits.
        """
        size = min(size, problem.capacity)
        index, inverse_probability = draw_rows(
            at.uncertainty, problem.weights, size, rng, problem.communicator
        )
        return cls.of(problem, at.w, index, inverse_probability, at.logits)

    @classmethod
    def of(
        cls,
        problem: Problem,
        w: Array,
        index: np.ndarray,
        inverse_probability: np.ndarray,
        logits: Array | None = None,
    ) -> Sample:
        """Gather the rows and their probabilities at `w`, from the logits of all rows if given."""
        xp = problem.xp
        x = problem.rows.take(index)
        own, rows = problem.communicator.span(len(index))
        z = problem.logits(w, x) if logits is None else xp.take(logits, like(index, x), axis=2)
        share = problem.weights_at(index) / cast(problem.total, problem.dtype)[:, None]
        inclusion = like(inverse_probability, x, problem.dtype)
        return cls(problem, index, own, rows, x, softmax_(z), share, inclusion)

    def take_tasks(self, index: list[int]) -> Sample:
        problem, share = self.problem.take_tasks(index), take_own(self.share, index)
        return replace(self, problem=problem, p=take_tasks(self.p, index), share=share)

    @property
    def weight(self) -> Array:
        """Row weights that make sums over the sample unbiased, `(m or 1, s)`."""
        return self.share * self.inverse_probability[None, :]

    def curvature(self, v: Array) -> Array:
        """The sampled Hessian times `v`, `(m, p)`; `s / n` of a pass."""
        problem = self.problem
        pulled, weight = Pullback(problem, v.shape[0]), self.weight[:, None, :]
        for span, x in Rows(self.x).blocks(v.shape[0] * problem.k):
            r = curvature_product(self.p[:, :, span], problem.directions(v, x))
            r *= weight[:, :, span]
            pulled.add(r, x)
        return problem.all_reduce(pulled.value())[0] + problem.penalty(v)


def sample_size(n: int, d: int, rows: int, growth: int = 1) -> int:
    """Rows of a solver's sample: `growth` times `rows`, or times `4 d` if that is more (`d` counted
    up to 1 024), but at most a quarter of all rows, or all of them if they are at most `4 rows`."""
    return min(growth * max(rows, 4 * min(d, 1024)), n if n <= 4 * rows else n // 4)


def draw_rows(
    uncertainty: Array,
    weights: Array | None,
    size: int,
    rng: np.random.Generator,
    communicator: Communicator,
) -> tuple[np.ndarray, np.ndarray]:
    """About `size` rows, host `(s,)`, and their inverse inclusion probabilities; see `Sample.draw`.

    Args:
        uncertainty: `(m, n)`; of this rank's rows, like the weights and what is returned.
        weights: row weights, `(m or 1, n)`, or None.
        size: rows that all ranks draw together.
        rng: the same on every rank.
        communicator: the ranks.
    """
    own, n = communicator.span(uncertainty.shape[1])
    chance = np.ones(uncertainty.shape[1])
    if size < n:
        relative = to_numpy(uncertainty).astype(np.float64)
        if weights is not None:
            relative = relative * to_numpy(weights)
        (total,) = communicator.all_reduce(relative.sum(axis=1, keepdims=True))
        relative /= np.maximum(total / n, 1e-30)
        quality = 0.9 * relative.mean(axis=0) + 0.1
        if weights is not None:  # rows held out of every task are no use
            quality *= to_numpy(weights).max(axis=0) > 0
        chance = quality
        for _ in range(21):  # rows capped at 1 leave room that the others fill
            (total,) = communicator.all_reduce(chance.sum(keepdims=True))
            if chance is not quality and abs(total[0] - size) <= 0.01 * size:
                break
            chance = np.minimum(1.0, chance * (size / total[0]))
    index = np.flatnonzero(rng.random(n)[own] < chance)
    return index, 1.0 / chance[index]
