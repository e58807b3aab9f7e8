"""Decide which classes a probe has: those that are given, or those found among the labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np

from convexprobe._arguments import shown
from convexprobe.arrays.ranks import Communicator
from convexprobe.probes.columns import host_vector

IGNORE = -100
"""The label by which `torch.nn.CrossEntropyLoss` and many data sets mark rows to ignore."""


def check_classes(classes: Any) -> tuple[Any, ...] | None:
    """The class list of the caller, in its order, or None.

    Raises:
        TypeError: not a sequence of classes; a set has no order.
        ValueError: a class that is repeated, NaN or not hashable, or fewer than two.
    """
    if classes is None:
        return None
    if isinstance(classes, (Set, Mapping)):
        raise TypeError(f"classes: expected a list, which has an order, found {shown(classes)}")
    values = host_vector(classes, "classes")
    order = tuple(values.tolist()) if values.ndim == 1 else ()
    if len(order) < 2:
        raise ValueError(f"classes: expected a list of at least two, found {shown(classes)}")
    if any(_is_nan(c) for c in order) or len(set(order)) < len(order):
        raise ValueError(f"classes: expected distinct classes, found {order!r}")
    return order


def distinct(labels: np.ndarray, what: str = "labels") -> tuple[Any, ...]:
    """The classes among the labels, in the order of `in_order`.

    Raises:
        ValueError: a label that is hardly meant as a class: a missing one, a fraction, `IGNORE`.
    """
    if labels.dtype == object:
        order = in_order(labels.tolist())
    else:  # not through a list of Python numbers, which take 40 bytes each
        order = tuple(np.unique(labels).tolist())
    for c in order:
        if why := why_no_class(c):
            if labels.dtype == object:
                row = next(i for i, label in enumerate(labels.tolist()) if label is c)
            else:
                row = int((labels != labels if c is None or _is_nan(c) else labels == c).argmax())
            raise ValueError(f"{what}: row {row} has {c!r}: {why}; or list all classes in classes=")
    return order


def why_no_class(label: Any) -> str:
    """Why a label can hardly be meant as a class; empty if it can."""
    if is_missing(label):
        return "expected a class; leave out rows without a label (NaN, NA or None)"
    if isinstance(label, Real) and label == IGNORE:
        return "it marks rows to ignore; leave them out"
    if isinstance(label, Real) and label % 1:
        return (
            "expected whole numbers, strings or other hashable classes; of soft labels take "
            "argmax(axis=1), bin continuous targets"
        )
    return ""


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none: None, a NaN of any type, or pandas' NA."""
    return value is None or _is_nan(value)


def _is_nan(value: Any) -> bool:
    """Whether a value is a NaN of any type, or pandas' NA."""
    try:
        return bool(value != value)
    except TypeError:  # NA == NA is NA, which is neither true nor false
        return True


def in_order(values: Iterable[Any]) -> tuple[Any, ...]:
    """Each value once, sorted if they can be compared, else in the order of appearance."""
    distinct_values = dict.fromkeys(values)
    with suppress(TypeError):
        return tuple(sorted(distinct_values))
    return tuple(distinct_values)


def encode(labels: np.ndarray, order: tuple[Any, ...], what: str = "labels") -> np.ndarray:
    """Indices `(n,)` int64 of the labels in a class list.

    Raises:
        ValueError: a label that is not in the list.
    """
    index = {c: i for i, c in enumerate(order)}
    if labels.dtype != object:
        values, place = np.unique(labels, return_inverse=True)
        codes = np.array([index.get(v, -1) for v in values.tolist()], dtype=np.int64)[place]
    else:
        codes = np.fromiter((index.get(v, -1) for v in labels.tolist()), np.int64, len(labels))
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        label = labels[row : row + 1].tolist()[0]
        why = why_no_class(label)
        raise ValueError(
            f"{what}: row {row} has class {label!r}, which is not in classes ({order!r})"
            + (f": {why}" if why else "")
        )
    return codes


def agree_over_ranks(
    orders: list[tuple[Any, ...]], places: list[str], communicator: Communicator
) -> list[tuple[Any, ...]]:
    """The classes that the labels of all ranks have, concept by concept.

    Args:
        orders: of each concept, the classes among this rank's labels.
        places: what messages call the concepts.
        communicator: the ranks.

    Raises:
        ValueError: on every rank: classes that are neither strings nor numbers, or strings on one
            rank and numbers on another.
    """
    if communicator.size == 1:
        return orders
    with communicator.raise_together():
        odd = [c for order in orders for c in order if not isinstance(c, (str, int, float))]
        if odd:
            raise ValueError(
                "labels: ranks tell each other of classes that are strings or numbers, found "
                f"{odd[0]!r}: pass classes="
            )
    gathered = [json.loads(text) for text in communicator.texts(json.dumps(orders))]
    merged = []
    for place, parts in zip(places, zip(*gathered, strict=True), strict=True):
        kinds = [{"strings" if isinstance(c, str) else "numbers" for c in part} for part in parts]
        ranks = [rank for rank, kind in enumerate(kinds) if kind]  # others have no rows
        for rank in ranks:
            if kinds[rank] != kinds[ranks[0]]:
                raise ValueError(
                    f"{place}: expected labels of one kind on every rank, found "
                    f"{' and '.join(sorted(kinds[ranks[0]]))} on rank {ranks[0]} and "
                    f"{' and '.join(sorted(kinds[rank]))} on rank {rank}; "
                    "if that is meant, list all classes in classes="
                )
        merged.append(in_order(chain(*parts)))
    return merged
