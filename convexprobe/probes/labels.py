"""Check labels, of one concept or of several, and encode them as class indices."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convexprobe.arrays.backend import is_array, to_numpy
from convexprobe.arrays.ranks import ALONE, Communicator
from convexprobe.probes.classes import agree_over_ranks, distinct, encode, unknown_labels
from convexprobe.probes.columns import host_vector, matrix_or_values

_HINT = "; concepts are an (n, m) array or a mapping, and of one-hot rows take argmax(axis=1)"


@dataclass(frozen=True)
class Labels:
    """The encoded labels of one concept, or of several over the same rows.

    Attributes:
        names: each concept's name; one None for plain labels.
        codes: class indices of all ranks' rows, host `(q, n)` int64; 0 where a label is unknown.
        own: the part of those rows that this rank holds.
        classes: each concept's class list, to which its indices refer.
        known: for each concept, which of all ranks' rows have a label, host bool `(n,)`; None if
            all have.
    """

    names: tuple[str | None, ...]
    codes: np.ndarray
    own: slice
    classes: tuple[tuple[Any, ...], ...]
    known: tuple[np.ndarray | None, ...]

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


def probe_name(layer: str, concept: str | None) -> str:
    """The probe's name in a set: "layer", or "layer/concept"."""
    return layer if concept is None else f"{layer}/{concept}"


def layer_of(name: str, concept: str | None) -> str:
    """The layer of a probe of that name and concept: what `probe_name` made the name of."""
    return name if concept is None else name.removesuffix(f"/{concept}")


def check_labels(labels: Any, rows: int, what: str = "labels") -> np.ndarray:
    """One concept's labels as a host vector `(rows,)`; see `host_vector`.

    Raises:
        TypeError, ValueError: not one hashable label a row.
    """
    values = host_vector(labels, what, _HINT)
    if values.ndim != 1:
        raise ValueError(f"{what}: expected one class a row, shape (n,), found {values.shape}")
    if len(values) != rows:
        raise ValueError(f"{what}: expected {rows} labels, one a row, found {len(values)}")
    if values.dtype.kind in "cV":
        raise TypeError(f"{what}: expected numbers, strings or objects, found {values.dtype}")
    return values


def split_concepts(labels: Any, rows: int, what: str = "labels") -> dict[str | None, np.ndarray]:
    """Host labels `(n,)` by concept: key of a mapping, column of an array or a frame, else None.

    Raises:
        TypeError: a concept's name is not a string.
        ValueError: no concepts, one twice, or labels refused by `check_labels`.
    """
    pandas = sys.modules.get("pandas")  # a frame exists only where it has been imported
    columns: list[tuple[Any, Any]]
    if isinstance(labels, Mapping):
        columns = list(labels.items())
    elif pandas is not None and isinstance(labels, pandas.DataFrame):
        columns = [(str(name), column) for name, column in labels.items()]
    else:
        labels = matrix_or_values(labels, what)
        if not is_array(labels) or labels.ndim != 2:
            return {None: check_labels(labels, rows, what)}
        columns = [(str(j), column) for j, column in enumerate(to_numpy(labels).T)]
    if not columns:
        raise ValueError(f"{what}: expected at least one concept, found none")
    concepts: dict[str | None, np.ndarray] = {}
    for name, column in columns:
        if not isinstance(name, str):
            raise TypeError(f"{what}: concept names must be strings, found {name!r}")
        if name in concepts:
            raise ValueError(f"{what}: expected concepts of different names, found {name!r} twice")
        concepts[name] = check_labels(column, rows, concept_place(what, name))
    return concepts


def unknown_of(
    concept: str | None, values: np.ndarray, classes: tuple[Any, ...] | None
) -> np.ndarray | None:
    """Which labels `(n,)` of a concept are unknown; None if all are known.

    Of plain labels all have to be known: a row without a label would be in no fit.
    """
    if concept is None:
        return None
    unknown = unknown_labels(values, classes)
    return unknown if unknown.any() else None


def known_codes(
    concept: str | None, values: np.ndarray, order: tuple[Any, ...], what: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Indices `(n,)` of a concept's labels in a class list, and weights `(n,)`: 0 for unknown ones.

    The index of an unknown label is 0, and without such labels the weights are None.

    Raises:
        ValueError: a label that is neither unknown nor in the list.
    """
    unknown = unknown_of(concept, values, order)
    codes = encode(values, order, what, unknown)
    return np.maximum(codes, 0), None if unknown is None else 1.0 - unknown


def read_labels(
    labels: Any,
    rows: int,
    classes: tuple[Any, ...] | None,
    communicator: Communicator = ALONE,
) -> Labels:
    """Check and encode labels; without `classes` each concept has those among its labels.

    Of concepts, labels that are missing or -100 are unknown, unless `classes` has them.

    Warns:
        UserWarning: -1 is a label beside 0, 1 and 2: it often marks rows without a label.

    Raises:
        TypeError, ValueError: labels refused; more classes than the rows can carry; a concept
            without a known label; or, over ranks, labels of different concepts or kinds.
    """
    with communicator.raise_together():
        concepts = split_concepts(labels, rows)
        places = [concept_place("labels", name) for name in concepts]
        unknown = [unknown_of(name, values, classes) for name, values in concepts.items()]
        named = list(zip(places, concepts.values(), unknown, strict=True))
        orders = [
            distinct(values, at, skipped) if classes is None else classes
            for at, values, skipped in named
        ]
    communicator.check_same(labels=f"concepts {[*concepts]}")
    own, n = communicator.span(rows)
    if classes is None:
        orders = agree_over_ranks(orders, places, communicator)
        for place, order in zip(places, orders, strict=True):
            _check_number(order, n, place)
    codes = np.empty((len(named), rows), dtype=np.int64)
    with communicator.raise_together():
        for code, (place, values, skipped), order in zip(codes, named, orders, strict=True):
            code[:] = encode(values, order, place, skipped)
    if communicator.size > 1:  # ranks add rows, the first axis
        codes = np.ascontiguousarray(communicator.all_gather(np.ascontiguousarray(codes.T)).T)
    return Labels(tuple(concepts), codes, own, tuple(orders), _known(codes, places))


def _known(codes: np.ndarray, places: list[str]) -> tuple[np.ndarray | None, ...]:
    """Which rows each concept's codes `(q, n)` know, None for all; unknown codes become 0."""
    out: list[np.ndarray | None] = []
    for row, place in zip(codes, places, strict=True):
        known = row >= 0
        if not known.any():
            raise ValueError(
                f"{place}: expected rows with a label, found none: all are missing or -100"
            )
        out.append(None if known.all() else known)
        np.maximum(row, 0, out=row)
    return tuple(out)


def _check_number(order: tuple[Any, ...], rows: int, place: str) -> None:
    """Refuse labels that tell rows apart, not classes; warn of a -1 that may stand for no label."""
    if len(order) > max(rows // 2, 2):
        raise ValueError(
            f"{place}: expected at least two rows a class, found {len(order)} classes in {rows} "
            "rows; if that is meant, list all classes in classes="
        )
    if {-1, 0, 1, 2} <= set(order):
        warnings.warn(
            f"{place}: -1 is fitted as a class beside 0, 1 and 2; if it marks rows without a "
            "label, leave them out, or give a concept -100 there; if it is a class, list all "
            "classes in classes=",
            UserWarning,
            stacklevel=4,
        )


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
