"""Score logits on labelled rows: error, loss in nats and bits, usable information."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np

from convexprobe.arrays.ranks import ALONE, Communicator


@dataclass(frozen=True)
class Score:
    """A probe's performance on labelled rows, each counted by its weight.

    Attributes:
        error: fraction of rows that are misclassified.
        loss: mean cross-entropy, nats; infinite if a row's class got probability 0.
        label_entropy: entropy of the labels, nats.
        rows: total weight of the rows, their number if unweighted.
    """

    error: float
    loss: float
    label_entropy: float
    rows: float

    @property
    def bits(self) -> float:
        """Mean cross-entropy, bits."""
        return self.loss / log(2)

    @property
    def usable_information(self) -> float:
        """`H(Y) - loss`, bits: what the probe tells about the label (Xu et al. 2020)."""
        return (self.label_entropy - self.loss) / log(2)


def tally(logits: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Weighted sums over rows, `(2 + k,)`: misclassified, loss in nats, and rows of each class.

    The predicted class is the first of those with the largest logit.

    Args:
        logits: host `(n, k)`; minus infinity for a class of probability 0.
        truth: class indices, host `(n,)`.
        weights: row weights, host `(n,)`; None counts every row once.
    """
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    loss = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(truth)), truth]
    s = np.ones(len(truth)) if weights is None else weights
    loss = np.where(s > 0, loss, 0.0)  # of a row that does not count it may be infinite
    wrong = logits.argmax(axis=1) != truth
    return np.array([s @ wrong, s @ loss, *np.bincount(truth, s, minlength=logits.shape[1])])


def score(sums: np.ndarray, communicator: Communicator = ALONE) -> Score:
    """The score of what `tally` summed, over the rows of all ranks.

    Raises:
        ValueError: no rows of positive weight on any rank.
    """
    wrong, loss, *counts = communicator.all_reduce(sums)[0].tolist()
    total = sum(counts)
    if total == 0:
        raise ValueError("labels: expected at least one row to score, found none")
    frequency = np.asarray([count for count in counts if count > 0]) / total
    return Score(
        error=wrong / total,
        loss=loss / total,
        label_entropy=float(-np.sum(frequency * np.log(frequency))),
        rows=total,
    )
