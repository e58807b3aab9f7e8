"""Check labels, of one concept or of several, and encode them as class indices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from convexprobe.arrays.backend import as_array, is_array, to_numpy
from convexprobe.arrays.ranks import ALONE, Communicator


def check_labels(labels: Any, rows: int, what: str = "labels") -> np.ndarray:
    """The labels as a host vector `(rows,)`: numbers, strings, or objects for anything else.

    Raises:
        ValueError: not one label a row, or a label that is NaN.
    """
    values = to_numpy(as_array(labels)) if is_array(labels) else as_vector(list(labels))
    if values.ndim != 1:
        raise ValueError(f"{what}: expected one class a row, shape (n,), found {values.shape}")
    if len(values) != rows:
        raise ValueError(f"{what}: expected {rows} labels, one a row, found {len(values)}")
    # Not through a list where it can be helped: millions of Python numbers are 40 bytes each.
    same_kind = values.dtype != object
    nan = values != values if same_kind else np.array([v != v for v in values.tolist()], dtype=bool)
    if nan.any():
        raise ValueError(f"{what}: NaN in row {int(nan.argmax())}")
    return values


def as_vector(items: Sequence[Any]) -> np.ndarray:
    """Numbers or strings of one type as an array `(n,)` of their own, anything else as objects."""
    same = len({type(item) for item in items}) == 1
    if same and isinstance(items[0], (int, float, str, np.generic)):
        return np.asarray(items)
    values = np.empty(len(items), dtype=object)
    values[:] = items
    return values


def distinct(labels: np.ndarray, what: str = "labels") -> tuple[Any, ...]:
    """The classes among the labels, in the order of `in_order`.

    Raises:
        ValueError: unhashable labels.
    """
    if labels.dtype != object:
        return tuple(np.unique(labels).tolist())
    try:
        return in_order(labels.tolist())
    except TypeError as error:
        raise ValueError(f"{what}: classes must be hashable ({error})") from None


def in_order(values: Iterable[Any]) -> tuple[Any, ...]:
    """Each value once, sorted if they can be compared, else in the order of appearance."""
    distinct_values = dict.fromkeys(values)
    with suppress(TypeError):
        return tuple(sorted(distinct_values))
    return tuple(distinct_values)


def encode(
    labels: np.ndarray, classes: Sequence[Any] | None, what: str = "labels"
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Class indices `(n,)` int64, and the class list: as given, or that of `distinct`.

    Raises:
        ValueError: a label outside `classes`, repeated `classes`, or unhashable labels.
    """
    if classes is None:
        order = distinct(labels, what)
    else:
        order = tuple(c.item() if isinstance(c, np.generic) else c for c in classes)
    index = {c: i for i, c in enumerate(order)}
    if len(index) != len(order):
        raise ValueError("classes: expected distinct classes, found repetitions")
    if labels.dtype != object:
        values, place = np.unique(labels, return_inverse=True)
        codes = np.array([index.get(v, -1) for v in values.tolist()], dtype=np.int64)[place]
    else:
        codes = np.fromiter((index.get(v, -1) for v in labels.tolist()), np.int64, len(labels))
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        raise ValueError(
            f"{what}: row {row} has class {labels[row : row + 1].tolist()[0]!r}, "
            f"which is not in classes ({order!r})"
        )
    return codes, order


@dataclass(frozen=True)
class Labels:
    """The encoded labels of one concept, or of several over the same rows.

    Attributes:
        names: each concept's name; one None for plain labels.
        codes: class indices of all ranks' rows, host `(q, n)` int64.
        own: the part of those rows that this rank holds.
        classes: each concept's class list, to which its indices refer.
    """

    names: tuple[str | None, ...]
    codes: np.ndarray
    own: slice
    classes: tuple[tuple[Any, ...], ...]

    @property
    def own_codes(self) -> np.ndarray:
        """Class indices of this rank's rows, host `(q, rows)` int64."""
        return self.codes[:, self.own]

    def where(self, concept: int) -> str:
        """What messages call the concept."""
        return concept_place("labels", self.names[concept])


def concept_place(what: str, concept: str | None) -> str:
    """What messages call the labels of a concept."""
    return what if concept is None else f"{what}[{concept!r}]"


def split_concepts(labels: Any, rows: int, what: str = "labels") -> dict[str | None, np.ndarray]:
    """Host labels `(n,)` by concept: key of a mapping, column of an `(n, m)` array, else None.

    Raises:
        TypeError: a concept's name is not a string.
        ValueError: no concepts, or labels refused by `check_labels`.
    """
    if isinstance(labels, Mapping):
        columns = dict(labels)
    elif is_array(labels) and as_array(labels).ndim == 2:
        values = to_numpy(as_array(labels))
        columns = {str(j): values[:, j] for j in range(values.shape[1])}
    else:
        return {None: check_labels(labels, rows, what)}
    if not columns:
        raise ValueError(f"{what}: expected at least one concept, found none")
    for name in columns:
        if not isinstance(name, str):
            raise TypeError(f"{what}: concept names must be strings, found {name!r}")
    return {name: check_labels(v, rows, concept_place(what, name)) for name, v in columns.items()}


def read_labels(
    labels: Any, rows: int, classes: Sequence[Any] | None, communicator: Communicator = ALONE
) -> Labels:
    """Check and encode labels; without `classes` each concept has those among its labels.

    Raises:
        ValueError: labels refused, or, over ranks, classes other than strings and numbers that
            `classes` does not list.
    """
    with communicator.raise_together():
        concepts = split_concepts(labels, rows)
        named = [(concept_place("labels", name), values) for name, values in concepts.items()]
        orders = [distinct(values, w) if classes is None else classes for w, values in named]
        odd = [c for order in orders for c in order if not isinstance(c, (str, int, float))]
        if odd and classes is None and communicator.size > 1:
            raise ValueError(
                f"labels: ranks tell each other of classes that are strings or numbers, found "
                f"{odd[0]!r}: pass classes="
            )
    communicator.check_same(concepts=tuple(concepts))
    if classes is None and communicator.size > 1:
        gathered = [json.loads(text) for text in communicator.texts(json.dumps(orders))]
        orders = [in_order(chain(*parts)) for parts in zip(*gathered, strict=True)]
    with communicator.raise_together():
        codes, orders = zip(
            *(encode(v, order, w) for (w, v), order in zip(named, orders, strict=True)), strict=True
        )
    whole = communicator.all_gather(np.stack(codes, axis=1))  # ranks add rows, the first axis
    own, _ = communicator.span(rows)
    return Labels(tuple(concepts), np.ascontiguousarray(whole.T), own, orders)


def probe_name(layer: str, concept: str | None) -> str:
    """The probe's name in a set: "layer", or "layer/concept"."""
    return layer if concept is None else f"{layer}/{concept}"


def check_two_classes(codes: np.ndarray, weights: np.ndarray | None, what: str = "labels") -> None:
    """Refuse labels that have fewer than two classes among the rows of positive weight."""
    present = np.unique(codes if weights is None else codes[weights > 0])
    if len(present) < 2:
        raise ValueError(f"{what}: expected at least two classes, found {len(present)}")


def check_probe_names(layers: Iterable[str], labels: Labels) -> None:
    """Refuse layers and concepts if two of their probes would have the same name."""
    names = [probe_name(layer, concept) for layer in layers for concept in labels.names]
    if len(set(names)) < len(names):
        raise ValueError(f"labels: two of layer/concept have the same name, in {names}")
