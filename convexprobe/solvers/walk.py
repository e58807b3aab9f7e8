"""How far a path of penalties walks down, by the losses on validation rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CLEAR = 1.25
"""How many times the lowest validation loss so far one loss is where a path ends at once."""


@dataclass(frozen=True)
class Walk:
    """How far a path goes: down from the largest penalty, for as long as validation rows gain.

    A concept's tasks leave the path when their loss on validation rows has risen twice in a row, or
    once to `CLEAR` times the lowest, or when it is no more than what is notable: no loss is below
    0. Below the smallest penalty given the path goes on, by factors of ten, while that loss falls
    by more than `notable`.

    Attributes:
        loss: of a task's solution (a `Fitted`) on its validation rows, nats.
        concept: which concept each task belongs to; their losses are averaged.
        notable: a loss, a rise or a fall that counts, nats.
        further: penalties at most below the smallest given.
    """

    loss: Callable[[int, Any], float]
    concept: Sequence[int]
    notable: float
    further: int = 4


@dataclass
class Trail:
    """The validation losses of one concept, from the largest penalty on."""

    losses: list[float] = field(default_factory=list)

    def ends(self, notable: float) -> bool:
        """Whether no smaller penalty is expected to do notably better."""
        *_, third, second, last = [np.inf, np.inf, np.inf, *self.losses]
        lowest = min(self.losses, default=np.inf)
        twice = last > second > third and last > third + notable
        return twice or last > max(CLEAR * lowest, lowest + notable) or lowest <= notable

    def falls(self, notable: float) -> bool:
        """Whether the last loss is the lowest, by more than what is notable."""
        before = min(self.losses[:-1], default=np.inf)
        return self.losses[-1] < before - notable
