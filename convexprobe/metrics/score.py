"""Score log-probabilities on labelled rows: error, loss in nats and bits, usable information."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np

from convexprobe.arrays.ranks import ALONE, Communicator


@dataclass(frozen=True)
class Score:
    """A probe's performance on labelled rows.

    Attributes:
        error: fraction of rows that are misclassified.
        loss: mean cross-entropy, nats; infinite if a row's class got probability 0.
        label_entropy: entropy of the labels, nats.
        rows: number of rows.
    """

    error: float
    loss: float
    label_entropy: float
    rows: int

    @property
    def bits(self) -> float:
        """Mean cross-entropy, bits."""
        return self.loss / log(2)

    @property
    def usable_information(self) -> float:
        """`H(Y) - loss`, bits: what the probe tells about the label (Xu et al. 2020)."""
        return (self.label_entropy - self.loss) / log(2)


def tally(log_probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Sums over rows, `(2 + k,)`: rows misclassified, loss in nats, rows of each class."""
    wrong = np.sum(log_probability.argmax(axis=1) != truth)
    loss = -np.sum(log_probability[np.arange(len(truth)), truth], dtype=np.float64)
    return np.array([wrong, loss, *np.bincount(truth, minlength=log_probability.shape[1])])


def score(
    log_probability: np.ndarray, truth: np.ndarray, communicator: Communicator = ALONE
) -> Score:
    """Score log-probabilities `(n, k)` and class indices `(n,)`, the rows of all ranks together.

    Raises:
        ValueError: no rows on any rank.
    """
    wrong, loss, *counts = communicator.all_reduce(tally(log_probability, truth))[0].tolist()
    n = int(sum(counts))
    if n == 0:
        raise ValueError("labels: expected at least one row to score, found none")
    frequency = np.asarray([count for count in counts if count > 0]) / n
    return Score(
        error=wrong / n,
        loss=loss / n,
        label_entropy=float(-np.sum(frequency * np.log(frequency))),
        rows=n,
    )
