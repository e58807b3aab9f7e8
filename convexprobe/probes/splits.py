"""Decide which rows each probe is fitted to, and which are held out of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convexprobe.arrays.backend import generator
from convexprobe.arrays.ranks import local
from convexprobe.probes.labels import Labels, check_two_classes

HELD_OUT = 0.2
"""Fraction of each class held out for validation when a choice has to be made without such rows."""


@dataclass(frozen=True)
class Split:
    """The rows that a task is fitted to and scored on: this rank's, counted from its first.

    Attributes:
        concept: the number of the concept in `Labels`.
        weights: row weights of the fit, host `(n,)`; None if all are equal.
        held: host index of the rows that it is scored on, or None.
    """

    concept: int
    weights: np.ndarray | None
    held: np.ndarray | None


def plan(
    labels: Labels, weights: np.ndarray | None, seed: int, *, folds: int | None, hold: bool
) -> list[Split]:
    """This rank's splits, concept by concept; the last split of a concept makes its probe.

    Rows are drawn among those of all ranks: the draw does not depend on how they are dealt out.

    Args:
        labels: of all ranks' rows.
        weights: of all ranks' rows, host `(n,)`, or None.
        seed: of the draws.
        folds: number of folds: a split for each, fitted to the other folds, and one of all rows.
        hold: whether the only split holds out a fifth of each class; else it has all rows.
    """
    splits = []
    for concept, codes in enumerate(labels.codes):
        where = labels.where(concept)
        if folds is not None:
            number = assign_folds(codes, weights, folds, seed, where)
            splits += [_held_out(concept, number == fold, weights) for fold in range(folds)]
        if hold:
            splits.append(_held_out(concept, hold_out(codes, weights, seed, where), weights))
        else:
            splits.append(Split(concept, weights, None))
        check_two_classes(codes, splits[-1].weights, where)
    own = labels.own
    # Splits that share an array of weights go on sharing it: a family keeps it once.
    parts = {id(s.weights): None if s.weights is None else s.weights[own] for s in splits}
    held = [None if s.held is None else local(s.held, own) for s in splits]
    return [Split(s.concept, parts[id(s.weights)], h) for s, h in zip(splits, held, strict=True)]


def _held_out(concept: int, held: np.ndarray, weights: np.ndarray | None) -> Split:
    """The split that holds out the rows of a mask `(n,)`."""
    fitted = np.where(held, 0.0, 1.0 if weights is None else weights)
    return Split(concept, fitted, np.flatnonzero(held))


def hold_out(
    codes: np.ndarray, weights: np.ndarray | None, seed: int, where: str = "labels"
) -> np.ndarray:
    """Mask `(n,)` of the validation rows: a fifth of each class, never all of a class."""
    rng = generator(seed)
    held = np.zeros(len(codes), dtype=bool)
    usable = np.ones(len(codes), dtype=bool) if weights is None else weights > 0
    for c in np.unique(codes[usable]):
        rows = rng.permutation(np.flatnonzero(usable & (codes == c)))
        held[rows[: int(HELD_OUT * len(rows))]] = True
    if not held.any():
        raise ValueError(
            f"{where}: validation rows are needed, and every class has fewer than "
            f"{int(1 / HELD_OUT)} rows to hold some out: pass validation=, or one l2"
        )
    return held


def assign_folds(
    codes: np.ndarray, weights: np.ndarray | None, folds: int, seed: int, where: str = "labels"
) -> np.ndarray:
    """The fold of each row, `(n,)`, -1 for a row of weight 0: stratified and of equal sizes.

    Raises:
        ValueError: fewer rows than folds, or fewer than two classes with two rows each: some fold
            would leave one class to fit.
    """
    rng = generator(seed)
    usable = np.ones(len(codes), dtype=bool) if weights is None else weights > 0
    counts = np.bincount(codes[usable])
    if np.sum(counts >= 2) < 2 or usable.sum() < folds:
        raise ValueError(
            f"{where}: cv={folds} needs {folds} rows and two classes with two rows each, "
            f"found class sizes {counts.tolist()}"
        )
    # Class after class, each in random order, dealt out in turn: sizes differ by one at most.
    rows = np.concatenate([rng.permutation(np.flatnonzero(usable & (codes == c)))
                           for c in range(len(counts))])  # fmt: skip
    number = np.full(len(codes), -1)
    number[rows] = np.arange(len(rows)) % folds
    return number
