"""What is measured of a probe on rows: error, loss in nats and bits, usable information."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np

from convexprobe.communicator import ALONE, Communicator


@dataclass(frozen=True)
class Score:
    """A probe's performance on labelled rows.

    Attributes:
        error: fraction of rows whose class is not the predicted one.
        loss: mean cross-entropy, nats (infinite if a row's class got probability 0).
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
        """`H(Y) - loss`, bits: what the probe can use about the label (Xu et al. 2020)."""
        return (self.label_entropy - self.loss) / log(2)


def score(
    log_probability: np.ndarray, truth: np.ndarray, communicator: Communicator = ALONE
) -> Score:
    """Score log-probabilities `(n, k)` against class indices `(n,)`, rows of all ranks together."""
    own = log_probability[np.arange(len(truth)), truth]
    counts, wrong, loss = communicator.sum(
        np.bincount(truth, minlength=log_probability.shape[1]),
        np.sum(log_probability.argmax(axis=1) != truth, keepdims=True),
        -np.sum(own, dtype=np.float64, keepdims=True),
    )
    n = int(counts.sum())
    if n == 0:
        raise ValueError("labels: expected at least one row to score, found none")
    frequency = counts[counts > 0] / n
    return Score(
        error=float(wrong[0] / n),
        loss=float(loss[0] / n),
        label_entropy=float(-np.sum(frequency * np.log(frequency))),
        rows=n,
    )
