"""The loss on validation rows as a rule to stop by: what early stopping watches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexprobe.activations.source import Source, in_smaller_blocks
from convexprobe.arrays.backend import Array, to_numpy
from convexprobe.arrays.elementwise import one_hot
from convexprobe.problem.objective import Problem
from convexprobe.problem.tasks import PerTask, take_tasks

_LARGEST = 1e6
"""Loss of a row whose class had no rows to fit to: a constant, from which sums still recover."""


@dataclass(frozen=True)
class ValidationLoss(PerTask):
    """Mean cross-entropy on validation rows, nats: `w` `(m, p)` -> host `(m,)`.

    Attributes:
        family: the tasks.
        rows: the validation rows.
        labels: their class indices, `(m or 1, rows)`.
        weights: which of them each task is judged on, `(m or 1, rows)`, or None for all.
    """

    family: Problem
    rows: Source
    labels: Array
    weights: Array | None

    def __call__(self, w: Array) -> np.ndarray:
        """Half a pass over the validation rows."""
        family = self.family
        loss, mass = family.all_reduce(*self._sums(w))
        return to_numpy(loss / mass)

    @in_smaller_blocks
    def _sums(self, w: Array) -> tuple[Array, Array]:
        """Loss and weight of this rank's rows, `(m,)` each."""
        family, xp = self.family, self.family.xp
        loss = mass = xp.zeros((family.m,), dtype=xp.float64, device=w.device)
        for span, x in self.rows.blocks(family.m * family.k):
            z = family.logits(w, x)
            z -= xp.max(z, axis=1, keepdims=True)
            correct = one_hot(self.labels[:, span], family.k)
            row = xp.log(xp.sum(xp.exp(z), axis=1)) - xp.sum(
                xp.where(correct, z, xp.zeros_like(z)), axis=1
            )
            share = xp.ones_like(row) if self.weights is None else self.weights[:, span]
            loss = loss + xp.sum(xp.clip(row, None, _LARGEST) * share, axis=1, dtype=xp.float64)
            mass = mass + xp.sum(share, axis=1, dtype=xp.float64)
        return loss, mass

    def take_tasks(self, index: list[int]) -> ValidationLoss:
        """The remaining tasks."""
        weights = self.weights
        if weights is not None and weights.shape[0] > 1:
            weights = take_tasks(weights, index)
        labels = self.labels if self.labels.shape[0] == 1 else take_tasks(self.labels, index)
        return ValidationLoss(self.family.take_tasks(index), self.rows, labels, weights)
