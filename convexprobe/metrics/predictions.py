"""What a probe says of labelled rows, as far as the measures need it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from convexprobe.arrays.ranks import Communicator

MOST_LOGITS = 1 << 24
"""Logits of all rows and classes up to which they are kept, for measures that rank rows by them."""


@dataclass(frozen=True)
class Predictions:
    """One value a row, host arrays `(n,)`, for a classifier of `classes` classes.

    Attributes:
        classes: number of classes `k`.
        truth: class indices.
        predicted: the first class of those with the largest logit.
        place: how many classes come before the true one, by logit and then by index.
        loss: cross-entropy, nats; infinite where the class has probability 0.
        confidence: the largest probability.
        weights: non-negative row weights.
        ranking: what rows are ranked by, `(n, k)`, or None: log-probabilities, and of two classes
            differences of logits, which do not saturate.
    """

    classes: int
    truth: np.ndarray
    predicted: np.ndarray
    place: np.ndarray
    loss: np.ndarray
    confidence: np.ndarray
    weights: np.ndarray
    ranking: np.ndarray | None

    def gather(self, communicator: Communicator) -> Predictions:
        """Those of all ranks' rows."""
        if communicator.size == 1:
            return self
        rows: dict[str, Any] = {n: communicator.all_gather(c) for n, c in self.columns().items()}
        return replace(self, **rows)

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: v for name, v in values.items() if isinstance(v, np.ndarray)}


def predictions(
    logits: np.ndarray, truth: np.ndarray, weights: np.ndarray | None, *, rank: bool
) -> Predictions:
    """The predictions of a block of rows.

    Args:
        logits: host `(n, k)`; minus infinity for a class of probability 0.
        truth: class indices, host `(n,)`.
        weights: row weights, host `(n,)`; None counts every row once.
        rank: whether to keep what rows are ranked by.
    """
    z = logits.astype(np.float64)
    n, k = z.shape
    own = z[np.arange(n), truth]
    before = (z > own[:, None]) | ((z == own[:, None]) & (np.arange(k) < truth[:, None]))
    log_p = z - z.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    ranking = None
    if rank:
        ranking = z - z[:, ::-1] if k == 2 else log_p
    return Predictions(
        classes=k,
        truth=truth,
        predicted=z.argmax(axis=1),
        place=before.sum(axis=1),
        loss=-log_p[np.arange(n), truth],
        confidence=np.exp(log_p.max(axis=1)),
        weights=np.ones(n) if weights is None else weights,
        ranking=ranking,
    )


def joined(blocks: Iterable[Predictions]) -> Predictions:
    """The predictions of several blocks of rows, one after another."""
    parts = list(blocks)
    columns = [part.columns() for part in parts]
    whole: dict[str, Any] = {n: np.concatenate([c[n] for c in columns]) for n in columns[0]}
    return replace(parts[0], **whole)
