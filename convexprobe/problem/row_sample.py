"""Rows drawn where the curvature is: a cheap stand-in for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import (
    Array,
    beside,
    cast,
    namespace,
    on_cpu,
    to_numpy,
    uniform,
)
from convexprobe.arrays.ranks import Communicator
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.pullback import Pullback
from convexprobe.problem.softmax import curvature_product, softmax_
from convexprobe.problem.tasks import PerTask, take_own, take_tasks

ROUNDS, FEW_ROUNDS = 21, 8
"""Rounds in which inclusion probabilities are found, at most, and where nobody looks whether they
are: two or three do but for rows whose uncertainties are orders apart."""

TOGETHER = 1 << 22
"""Numbers that a draw looks at together in float64."""

UNSEEN = 1e-5
"""Curvature of directions that neither rows nor a penalty show, of a feature's mean curvature."""


@dataclass(frozen=True)
class Sample(PerTask):
    """Rows held together with their probabilities at one point: a cheap stand-in for all rows.

    Attributes:
        problem: the family.
        index: which of this rank's rows, `(s,)`; see `Source.take`.
        own: where they stand among the rows that all ranks drew.
        rows: how many all ranks drew.
        x: the rows, `(s, d)`.
        p: probabilities at the point, `(m, k, s)`.
        share: each row's own weight `s_i / S`, `(m or 1, s)`.
        inverse_probability: of being drawn, `(s,)`; `share * inverse_probability` makes sums
            unbiased.
    """

    problem: Problem
    index: Array
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
        index: Array,
        inverse_probability: Array,
        logits: Array | None = None,
    ) -> Sample:
        """Gather the rows and their probabilities at `w`, from the logits of all rows if given."""
        xp = problem.xp
        x = problem.rows.take(index)
        own, rows = problem.communicator.span(index.shape[0])
        z = problem.logits(w, x) if logits is None else xp.take(logits, beside(index, x), axis=2)
        share = problem.weights_at(index) / cast(problem.total, problem.dtype)[:, None]
        inclusion = cast(beside(inverse_probability, x), problem.dtype)
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
        problem, two = self.problem, self.problem.k == 2
        pulled, weight = Pullback(problem, v.shape[0]), self._second if two else self.weight
        for span, x in self._blocks:
            if two:
                r = problem.difference(v, x)
            else:
                r = curvature_product(self.p[:, :, span], problem.directions(v, x))
            r *= weight[:, None, span]
            pulled.add(r, x)
        return problem.all_reduce(pulled.value())[0] + problem.penalty(v)

    def definite_curvature(self, v: Array) -> Array:
        """`curvature`, and where there is no penalty `UNSEEN` of a feature's mean curvature.

        It keeps rounding out of directions that no row has.
        """
        product = self.curvature(v)
        if self._floor is None:
            return product
        weights, bias = self.problem.split(v)
        return product + self.problem.join(self._floor[:, None, None] * weights, 0.0 * bias)

    @cached_property
    def _blocks(self) -> list[tuple[slice, Array]]:
        return list(Rows(self.x).blocks(self.problem.m * self.problem.k))

    @cached_property
    def _second(self) -> Array:
        """Of two classes, `P_0 P_1` times the weight, `(m, s)`: what a row's curvature makes of the
        difference of its logits, for the second."""
        return self.p[:, 0, :] * self.p[:, 1, :] * self.weight

    @cached_property
    def _floor(self) -> Array | None:
        """What `definite_curvature` adds to every weight's, `(m,)`; None if all are penalised."""
        problem, xp = self.problem, self.problem.xp
        if (problem.host_l2 > 0).all():
            return None
        h = (1.0 - xp.sum(self.p * self.p, axis=1)) / problem.k * self.weight
        size = h @ xp.sum(self.x * self.x, axis=1)
        (size,) = problem.all_reduce(cast(size, xp.float64))
        return xp.where(problem.l2 > 0, 0.0, UNSEEN * size / problem.d)


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
) -> tuple[Array, Array]:
    """About `size` rows, `(s,)`, and their inverse inclusion probabilities; see `Sample.draw`.

    Rows on a device are drawn there, so that what the draw is made from does not travel: the host
    waits once, for the number of rows.

    Args:
        uncertainty: `(m, n)`; of this rank's rows, like the weights and what is returned.
        weights: row weights, `(m or 1, n)`, or None.
        size: rows that all ranks draw together.
        rng: the same on every rank.
        communicator: the ranks.
    """
    own, n = communicator.span(uncertainty.shape[1])
    host = on_cpu(uncertainty)
    if host:  # NumPy's calls take the least time
        uncertainty = to_numpy(uncertainty)
        weights = None if weights is None else to_numpy(weights)
    xp = namespace(uncertainty)
    place = {"device": uncertainty.device}
    if size >= n:
        index = xp.arange(uncertainty.shape[1], **place)
        return index, xp.ones(uncertainty.shape[1], dtype=xp.float64, **place)
    tasks = uncertainty.shape[0]
    step = max(TOGETHER // max(uncertainty.shape[1], 1), 1)

    def parts() -> Iterator[tuple[slice, Array]]:
        """The uncertainty times the weight in float64, some tasks at a time."""
        for first in range(0, tasks, step):
            span = slice(first, first + step)
            part = cast(uncertainty[span, :], xp.float64)
            if weights is not None:
                part = part * (weights if weights.shape[0] == 1 else weights[span, :])
            yield span, part

    sums = [xp.sum(part, axis=1, keepdims=True) for _, part in parts()]
    (total,) = communicator.all_reduce(xp.concat(sums, axis=0))
    size_of_one = xp.clip(total / n, 1e-30, None)
    quality = 0.1
    for span, part in parts():
        quality = quality + (0.9 / tasks) * xp.sum(part / size_of_one[span, :], axis=0)
    if weights is not None:  # rows held out of every task are no use
        quality = quality * cast(xp.max(weights, axis=0) > 0, xp.float64)
    chance = _inclusion(quality, size, communicator, ends=host or communicator.size > 1)
    random = rng.random(n)[own] if host else uniform(int(rng.integers(1 << 62)), own, chance)
    (index,) = xp.nonzero(random < chance)
    return index, 1.0 / xp.take(chance, index)


def _inclusion(quality: Array, size: int, communicator: Communicator, *, ends: bool) -> Array:
    """Probabilities `min(1, c quality)`, `(n,)`, that add up to `size` over the ranks, about.

    Rows capped at 1 leave room that the others fill, round by round. Where reading the sum costs
    little, the rounds end as soon as it is right; else there are a few, and those after do nothing.
    """
    xp, chance = namespace(quality), quality
    for turn in range(ROUNDS if ends else FEW_ROUNDS):
        (total,) = communicator.all_reduce(xp.sum(chance, keepdims=True))
        factor, right = size / total, xp.abs(total - size) <= 0.01 * size
        if turn and ends and bool(right[0]):
            break
        if turn and not ends:
            factor = xp.where(right, 1.0, factor)
        chance = xp.clip(chance * factor, None, 1.0)
    return chance
