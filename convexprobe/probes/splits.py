"""Which rows are fitted to and which are held out: validation fifths and cross-validation folds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from convexprobe.arrays.backend import generator
from convexprobe.arrays.ranks import local
from convexprobe.probes.labels import Labels, check_two_classes

HELD_OUT = 0.2
"""Fraction of each class held out for validation when a choice has to be made without such rows."""


@dataclass(frozen=True)
class Split:
    """The tasks of a family that differ in `l2` alone.

    Attributes:
        concept: which column of the labels.
        weights: row weights of the fit, host `(n,)`, or None if all are equal.
        held: rows it is scored on, host index, or None.
    """

    concept: int
    weights: np.ndarray | None
    held: np.ndarray | None


def plan(
    labels: Labels, weights: np.ndarray | None, seed: int, *, folds: int | None, hold: bool
) -> list[Split]:
    """The groups of every concept, concept by concept; the last of each is the one to return.

    With `folds`, one group a fold, fitted to the other folds, and then all rows; with `hold`, one
    group, fitted to four fifths of each class; otherwise one group of all rows.
    """
    groups = []
    for concept, codes in enumerate(labels.codes):
        where = labels.where(concept)
        if folds is not None:
            number = assign_folds(codes, weights, folds, seed, where)
            for fold in range(folds):
                held = number == fold
                groups.append(Split(concept, _without(held, weights), np.flatnonzero(held)))
        if hold:
            held = hold_out(codes, weights, seed, where)
            groups.append(Split(concept, _without(held, weights), np.flatnonzero(held)))
        else:
            groups.append(Split(concept, weights, None))
        check_two_classes(codes, groups[-1].weights, where)
    return groups


def on_rank(groups: list[Split], own: slice) -> list[Split]:
    """The groups of a rank that holds the rows `own`: weights and held rows are then its own.

    Weights that groups share they still share.
    """
    parts = {id(g.weights): None if g.weights is None else g.weights[own] for g in groups}
    held = [None if g.held is None else local(g.held, own) for g in groups]
    return [
        replace(g, weights=parts[id(g.weights)], held=h) for g, h in zip(groups, held, strict=True)
    ]


def _without(held: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    return np.where(held, 0.0, 1.0 if weights is None else weights)


def hold_out(
    codes: np.ndarray, weights: np.ndarray | None, seed: int, where: str = "labels"
) -> np.ndarray:
    """Mask `(n,)` of the validation rows: a fifth of each class, never all of one."""
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
    """The fold of each row, `(n,)`, -1 for a row of weight 0: stratified, of equal sizes.

    Raises:
        ValueError: fewer rows than folds, or not two classes with two rows each, without which
            some fold leaves one class to fit.
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
