"""Decide which rows each probe is fitted to, and which are held out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convexprobe.arrays.backend import generator
from convexprobe.arrays.ranks import local
from convexprobe.probes.groups import assign_groups
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
    labels: Labels,
    weights: Sequence[np.ndarray | None],
    seeds: Sequence[int],
    *,
    folds: int | None,
    hold: bool,
    groups: np.ndarray | None = None,
) -> list[Split]:
    """This rank's splits, concept by concept; the last split of a concept makes its probe.

    Rows are drawn among those of all ranks: the draw does not depend on how they are dealt out.

    Args:
        labels: of all ranks' rows.
        weights: of all ranks' rows, host `(n,)` or None, for every concept.
        seeds: of the draws; folds take the first.
        folds: number of folds: a split for each, fitted to the other folds, and one of all rows.
        hold: whether each seed's split holds out a fifth of each class; else there is one split,
            of all rows.
        groups: group numbers of all ranks' rows, `(n,)`: no draw divides a group; None for rows
            that stand alone.
    """
    splits = []
    for concept, codes in enumerate(labels.codes):
        where, own = labels.where(concept), weights[concept]
        if folds is not None:
            number = assign_folds(codes, own, folds, seeds[0], where, groups)
            splits += [_held_out(concept, number == fold, own) for fold in range(folds)]
        for seed in seeds if hold else ():
            held = hold_out(codes, own, seed, where, groups)
            splits.append(_held_out(concept, held, own))
        if not hold:
            splits.append(Split(concept, own, None))
        check_two_classes(codes, splits[-1].weights, where)
    mine = labels.own
    # Splits that share an array of weights go on sharing it: a family keeps it once.
    parts = {id(s.weights): None if s.weights is None else s.weights[mine] for s in splits}
    held_rows = [None if s.held is None else local(s.held, mine) for s in splits]
    return [
        Split(s.concept, parts[id(s.weights)], h) for s, h in zip(splits, held_rows, strict=True)
    ]


def _held_out(concept: int, held: np.ndarray, weights: np.ndarray | None) -> Split:
    """The split that holds out the rows of a mask `(n,)`."""
    fitted = np.where(held, 0.0, 1.0 if weights is None else weights)
    return Split(concept, fitted, np.flatnonzero(held))


def hold_out(
    codes: np.ndarray,
    weights: np.ndarray | None,
    seed: int,
    where: str = "labels",
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Mask `(n,)` of the validation rows: a fifth of each class, never all of a class.

    With groups it is the fold of five (of fewer if there are fewer groups) whose shares of the
    classes are nearest to a fifth.
    """
    rng = generator(seed)
    usable = np.ones(len(codes), dtype=bool) if weights is None else weights > 0
    if groups is not None:
        return _hold_out_groups(codes, usable, groups, rng, where)
    held = np.zeros(len(codes), dtype=bool)
    for c in np.unique(codes[usable]):
        rows = rng.permutation(np.flatnonzero(usable & (codes == c)))
        held[rows[: int(HELD_OUT * len(rows))]] = True
    if not held.any():
        raise ValueError(
            f"{where}: validation rows are needed, and every class has fewer than "
            f"{int(1 / HELD_OUT)} rows to hold some out: pass validation=, or one l2"
        )
    return held


def _hold_out_groups(
    codes: np.ndarray,
    usable: np.ndarray,
    groups: np.ndarray,
    rng: np.random.Generator,
    where: str,
) -> np.ndarray:
    """The mask of `hold_out` where no group may be divided."""
    free, count = _free_groups(codes, usable, groups)
    if count < 2:
        raise ValueError(
            f"groups: validation rows are needed, and no two groups can be spared without a class "
            f"of {where} losing all its rows: pass validation=, or one l2"
        )
    folds = min(int(1 / HELD_OUT), count)
    number = np.full(len(codes), -1)
    number[free] = assign_groups(codes[free], groups[free], folds, rng)
    totals = np.bincount(codes[usable])
    present = totals > 0
    shares = np.stack(
        [np.bincount(codes[number == fold], minlength=len(totals)) for fold in range(folds)]
    )
    fractions = shares[:, present] / totals[present]
    lost, far = (fractions == 1).sum(axis=1), ((fractions - HELD_OUT) ** 2).sum(axis=1)
    return number == np.lexsort((far, lost))[0]


def _free_groups(
    codes: np.ndarray, usable: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, int]:
    """The usable rows, `(n,)`, of groups that may be held out, and the number of those groups.

    A group that has every row of a class stays in all fits: without it the class has no rows.
    """
    pairs = np.unique(np.stack([codes[usable], groups[usable]]), axis=1)
    _, first, times = np.unique(pairs[0], return_index=True, return_counts=True)
    needed = pairs[1, first[times == 1]]
    free = usable & ~np.isin(groups, needed)
    return free, len(np.unique(groups[free]))


def assign_folds(
    codes: np.ndarray,
    weights: np.ndarray | None,
    folds: int,
    seed: int,
    where: str = "labels",
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """The fold of each row, `(n,)`, -1 for a row in no fold: stratified and of equal sizes.

    Rows of weight 0 are in no fold; with groups, neither is a group that has every row of a class.

    Raises:
        ValueError: fewer rows or groups than folds, or fewer than two classes with two rows each:
            some fold would leave one class to fit.
    """
    rng = generator(seed)
    usable = np.ones(len(codes), dtype=bool) if weights is None else weights > 0
    counts = np.bincount(codes[usable])
    if np.sum(counts >= 2) < 2 or usable.sum() < folds:
        raise ValueError(
            f"{where}: cv={folds} needs {folds} rows and two classes with two rows each, "
            f"found class sizes {counts.tolist()}"
        )
    number = np.full(len(codes), -1)
    if groups is not None:
        free, count = _free_groups(codes, usable, groups)
        if count < folds:
            raise ValueError(
                f"groups: cv={folds} needs {folds} groups without which every class of {where} "
                f"still has rows, found {count}; pass fewer folds"
            )
        number[free] = assign_groups(codes[free], groups[free], folds, rng)
        return number
    # Class after class, each in random order, dealt out in turn: sizes differ by one at most.
    rows = np.concatenate([rng.permutation(np.flatnonzero(usable & (codes == c)))
                           for c in range(len(counts))])  # fmt: skip
    number[rows] = np.arange(len(rows)) % folds
    return number
