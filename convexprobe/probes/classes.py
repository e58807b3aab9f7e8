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


def unknown_labels(labels: np.ndarray, order: tuple[Any, ...] | None = None) -> np.ndarray:
    """Which labels say that the class is not known, bool in their shape: missing ones and `IGNORE`.

    Args:
        labels: of any shape.
        order: classes that are listed, all of which are known; None if none are.
    """
    listed = order or ()
    if labels.dtype == object:
        marks = (
            (is_missing(v) or (isinstance(v, Real) and v == IGNORE)) and v not in listed
            for v in labels.ravel().tolist()
        )
        return np.fromiter(marks, bool, labels.size).reshape(labels.shape)
    unknown = np.zeros(labels.shape, dtype=bool)
    if labels.dtype.kind in "if" and IGNORE not in listed:
        unknown |= labels == IGNORE
    if labels.dtype.kind == "f":
        unknown |= np.isnan(labels)
    return unknown


def distinct(
    labels: np.ndarray, what: str = "labels", unknown: np.ndarray | None = None
) -> tuple[Any, ...]:
    """The classes among the labels, in the order of `in_order`.

    Args:
        labels: `(n,)`.
        what: what messages call them.
        unknown: which of them to pass over, bool `(n,)`; None for none.

    Raises:
        ValueError: a label that is hardly meant as a class: a missing one, a fraction, `IGNORE`.
    """
    known = labels if unknown is None else labels[~unknown]
    # numbers not through a list of Python's, which take 40 bytes each
    plain = labels.dtype != object
    order = tuple(np.unique(known).tolist()) if plain else in_order(known.tolist())
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


def encode(
    labels: np.ndarray,
    order: tuple[Any, ...],
    what: str = "labels",
    unknown: np.ndarray | None = None,
) -> np.ndarray:
    """Indices `(n,)` int64 of the labels in a class list, -1 for those that are unknown.

    Args:
        labels: `(n,)`.
        order: the class list.
        what: what messages call the labels.
        unknown: which labels are not known, bool `(n,)`; None for none.

    Raises:
        ValueError: a label that is not in the list.
    """
    index = {c: i for i, c in enumerate(order)}
    if labels.dtype != object:
        values, place = np.unique(labels, return_inverse=True)
        codes = np.array([index.get(v, -1) for v in values.tolist()], dtype=np.int64)[place]
    else:
        codes = np.fromiter((index.get(v, -1) for v in labels.tolist()), np.int64, len(labels))
    bad = codes < 0 if unknown is None else (codes < 0) & ~unknown
    if bad.any():
        row = int(bad.argmax())
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
