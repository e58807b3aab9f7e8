"""Check which rows belong together, and deal groups out to folds."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import numpy as np

from convexprobe.arrays.ranks import ALONE, Communicator
from convexprobe.probes.classes import in_order, is_missing
from convexprobe.probes.columns import host_vector


def read_groups(groups: Any, rows: int, communicator: Communicator = ALONE) -> np.ndarray | None:
    """The group numbers of all ranks' rows, host `(n,)` int64 from 0 on, or None without groups.

    Args:
        groups: one hashable value a row of this rank, `(rows,)`; rows of one value belong together.
        rows: this rank's rows.
        communicator: the ranks; a group may have rows on several.

    Raises:
        TypeError, ValueError: not one value a row, a missing value, one group alone; over ranks,
            values that are neither strings nor numbers.
    """
    if groups is None:
        return None
    with communicator.raise_together():
        values = host_vector(groups, "groups")
        if values.shape != (rows,):
            raise ValueError(f"groups: expected one value a row, ({rows},), found {values.shape}")
        items = values.tolist()
        order = in_order(items)
        if missing := [value for value in order if is_missing(value)]:
            row = next(i for i, value in enumerate(items) if is_missing(value))
            raise ValueError(
                f"groups: row {row} has {missing[0]!r}; give a row that belongs to no other a "
                "value of its own"
            )
        odd = [v for v in order if not isinstance(v, (str, int, float))]
        if odd and communicator.size > 1:
            raise ValueError(
                "groups: ranks tell each other of groups that are strings or numbers, found "
                f"{odd[0]!r}; number the groups"
            )
    if communicator.size > 1:
        parts = map(json.loads, communicator.texts(json.dumps(order)))
        order = in_order(chain.from_iterable(parts))
    if len(order) < 2:
        raise ValueError(
            f"groups: expected at least two groups, found {len(order)}: rows that all belong "
            "together cannot be divided; omit groups="
        )
    number = {value: i for i, value in enumerate(order)}
    codes = np.fromiter((number[value] for value in items), np.int64, rows)
    return communicator.all_gather(codes)


def example_groups(activations: Any, communicator: Communicator = ALONE) -> np.ndarray | None:
    """The example that each of this rank's rows is of, `(rows,)`, where rows are tokens; else None.

    `extract` numbers each rank's examples from 0; here those of all ranks have different numbers.
    """
    examples = getattr(activations, "examples", None)
    if examples is None:
        return None
    counts = communicator.counts(int(examples.max(initial=-1)) + 1)
    return examples + int(counts[: communicator.rank].sum())


def assign_groups(
    codes: np.ndarray, groups: np.ndarray, folds: int, rng: np.random.Generator
) -> np.ndarray:
    """The fold of each row, `(n,)` from 0 on; no group is divided, and classes are balanced.

    The rule of scikit-learn's `StratifiedGroupKFold`: groups come in random order, those of the
    most uneven class counts first. Each goes to the fold that leaves the folds' shares of the
    classes with the lowest standard deviation, averaged over the classes; of equal folds, to the
    smallest.

    Args:
        codes: class indices, host `(n,)`.
        groups: group numbers, host `(n,)`, any integers.
        folds: number of folds; there are at least as many groups.
        rng: of the order.
    """
    _, codes = np.unique(codes, return_inverse=True)
    _, groups = np.unique(groups, return_inverse=True)
    size, k = int(groups.max()) + 1, int(codes.max()) + 1
    counts = np.bincount(groups * k + codes, minlength=size * k).reshape(size, k)
    order = rng.permutation(size)
    order = order[np.argsort(-counts.std(axis=1)[order], kind="stable")]
    total, each = counts.sum(axis=0), np.eye(folds)[:, :, None]
    held, number = np.zeros((folds, k)), np.zeros(size, dtype=np.int64)
    for group in order:
        # were the group in each fold in turn: the shares of the classes, (turn, fold, class)
        shares = (held + each * counts[group]) / total
        spread, rows = shares.std(axis=1).mean(axis=1).tolist(), held.sum(axis=1).tolist()
        best = 0
        for fold in range(1, folds):
            near = abs(spread[fold] - spread[best]) <= 1e-8 + 1e-5 * spread[best]
            if spread[fold] < spread[best] or (near and rows[fold] < rows[best]):
                best = fold
        number[group] = best
        held[best] += counts[group]
    return number[groups]
