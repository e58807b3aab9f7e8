"""What early stopping watches: the loss on validation rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexprobe.activations.source import Source, in_smaller_blocks
from convexprobe.arrays.backend import Array, to_numpy
from convexprobe.problem.objective import Problem
from convexprobe.problem.softmax import row_loss
from convexprobe.problem.tasks import PerTask, take_own

_LARGEST = 1e6
"""Loss of a row whose class had no rows to fit to: finite, so that sums still tell tasks apart."""


@dataclass(frozen=True)
class ValidationLoss(PerTask):
    """Mean cross-entropy on validation rows, nats: `w` `(m, p)` -> host `(m,)`.

    Attributes:
        family: the tasks.
        rows: the validation rows.
        labels: their class indices, `(m or 1, rows)`.
        weights: what each task's loss weighs them by, `(m or 1, rows)`, or None for ones.
    """

    family: Problem
    rows: Source
    labels: Array
    weights: Array | None

    def __call__(self, w: Array) -> np.ndarray:
        """Half a pass over the validation rows."""
        loss, mass = self.family.all_reduce(*self._sums(w))
        return to_numpy(loss / mass)

    @in_smaller_blocks
    def _sums(self, w: Array) -> tuple[Array, Array]:
        """Loss and weight of this rank's rows, `(m,)` each."""
        family, xp = self.family, self.family.xp
        loss = mass = xp.zeros((family.m,), dtype=xp.float64, device=w.device)
        for span, x in self.rows.blocks(family.m * family.k, once=True):
            row = row_loss(family.logits(w, x), self.labels[:, span])
            share = xp.ones_like(row) if self.weights is None else self.weights[:, span]
            loss = loss + xp.sum(xp.clip(row, None, _LARGEST) * share, axis=1, dtype=xp.float64)
            mass = mass + xp.sum(share, axis=1, dtype=xp.float64)
        return loss, mass

    def take_tasks(self, index: list[int]) -> ValidationLoss:
        labels, weights = take_own(self.labels, index), take_own(self.weights, index)
        return ValidationLoss(self.family.take_tasks(index), self.rows, labels, weights)
