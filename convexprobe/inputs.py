"""Errors at the door: user input checked and brought to one form before any work is done.

Every message says what was expected, what was found and where.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from convexprobe._array import (
    Array,
    as_array,
    cast,
    check_device,
    is_array,
    is_real,
    namespace,
    to_numpy,
)
from convexprobe.communicator import ALONE, Communicator
from convexprobe.solvers import SOLVERS, Solver
from convexprobe.sources import Source
from convexprobe.store import Store


def check_activations(
    activations: Any, what: str = "activations", *, least: int = 1
) -> dict[str, Array | Store]:
    """Layer name -> `(n, d)`, a real array (integers and booleans become float32) or a store.

    Args:
        activations: as for `fit_probes`.
        what: what messages call them.
        least: rows that a layer has to have.

    Raises:
        TypeError: a layer is not a real numeric array.
        ValueError: no layers, a layer that is empty or not two-dimensional, or unequal row counts.
    """
    if not isinstance(activations, Mapping):
        activations = {"activations": activations}
    if not activations:
        raise ValueError(f"{what}: expected at least one layer, found none")
    layers: dict[str, Array | Store] = {}
    for name, value in activations.items():
        where = f"{what}[{name!r}]"
        if not isinstance(name, str):
            raise TypeError(f"{what}: layer names must be strings, found {name!r}")
        if isinstance(value, Store):
            layers[name] = value
            continue
        array = as_array(value)
        if not is_real(array):
            raise TypeError(f"{where}: expected a real numeric array, found dtype {array.dtype}")
        if array.ndim != 2:
            raise ValueError(
                f"{where}: expected shape (rows, features), found {tuple(array.shape)}; "
                "reshape it, or pool while extracting"
            )
        if array.shape[0] < least or not array.shape[1]:
            raise ValueError(f"{where}: expected rows and features, found {tuple(array.shape)}")
        xp = namespace(array)
        if not xp.isdtype(array.dtype, "real floating"):
            array = cast(array, xp.float32)
        layers[name] = array
    first = next(iter(layers))
    for name, array in layers.items():
        if array.shape[0] != layers[first].shape[0]:
            raise ValueError(
                f"{what}[{name!r}]: expected {layers[first].shape[0]} rows like layer {first!r}, "
                f"found {array.shape[0]}"
            )
    return layers


def check_finite(rows: Source, where: str) -> None:
    """Name the first row with NaN or Inf, if there is one; one reading."""
    count, first = 0, ""
    for span, x in rows.blocks():
        xp = namespace(x)
        bad = to_numpy(xp.any(~xp.isfinite(x), axis=1))
        if bad.any() and not first:
            row = int(bad.argmax())
            column = int(to_numpy(~xp.isfinite(x[row, :])).argmax())
            first = f"{float(x[row, column])} in row {span.start + row}, feature {column}"
        count += int(bad.sum())
    if count:
        raise ValueError(
            f"{where}: expected finite values, found {first} ({count} bad rows of {rows.n})"
        )


def check_memory(device: Any, limit: Any) -> None:
    """A device that torch knows and can use, and a limit in bytes."""
    if device is not None:
        try:
            check_device(device)
        except (AssertionError, RuntimeError, TypeError) as error:  # torch without CUDA asserts
            raise ValueError(f"device: found {device!r}, which cannot be used: {error}") from None
    real = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if limit is not None and not (real and limit > 0):
        raise ValueError(f"memory_limit: expected a positive number of bytes, found {limit!r}")


def check_labels(labels: Any, rows: int, what: str = "labels") -> np.ndarray:
    """Labels as a host vector of `rows` classes: numeric, string, or object for anything else.

    Raises:
        ValueError: not one label a row, or NaN labels.
    """
    if is_array(labels):
        values = to_numpy(as_array(labels))
    else:
        items = list(labels)
        same = len({type(item) for item in items}) == 1
        plain = same and isinstance(items[0], (int, float, str, np.generic))
        values = np.asarray(items) if plain else np.empty(len(items), dtype=object)
        if not plain:
            values[:] = items
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


def distinct(labels: np.ndarray, what: str = "labels") -> tuple[Any, ...]:
    """The classes among the labels, sorted where they have an order, else by appearance.

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
    """Each value once, sorted where they have an order, else by appearance."""
    found = dict.fromkeys(values)
    with suppress(TypeError):
        return tuple(sorted(found))
    return tuple(found)


def encode(
    labels: np.ndarray, classes: Sequence[Any] | None, what: str = "labels"
) -> tuple[np.ndarray, tuple[Any, ...]]:
    """Class indices `(n,)` int64 and the class list (given, or sorted where it can be).

    Raises:
        ValueError: a label outside `classes`, `classes` with repetitions, or unhashable labels.
    """
    if classes is None:
        order = distinct(labels, what)
    else:
        order = tuple(c.item() if isinstance(c, np.generic) else c for c in classes)
    index = {c: i for i, c in enumerate(order)}
    if len(index) != len(order):
        raise ValueError("classes: expected distinct classes, found repetitions")
    if labels.dtype != object:
        found, place = np.unique(labels, return_inverse=True)
        codes = np.array([index.get(v, -1) for v in found.tolist()], dtype=np.int64)[place]
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
    """Labels of one concept, or of several over the same rows.

    Attributes:
        names: each concept's name; one None for plain labels.
        codes: class indices of all ranks' rows, host `(q, n)` int64.
        classes: each concept's own class list, to which its indices refer.
    """

    names: tuple[str | None, ...]
    codes: np.ndarray
    classes: tuple[tuple[Any, ...], ...]

    def where(self, concept: int) -> str:
        """What messages call the concept."""
        name = self.names[concept]
        return "labels" if name is None else f"labels[{name!r}]"


def split_concepts(labels: Any, rows: int, what: str = "labels") -> dict[str | None, np.ndarray]:
    """Host labels `(n,)` by concept: mapping key, column of an `(n, m)` array, None if plain.

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
    return {name: check_labels(v, rows, f"{what}[{name!r}]") for name, v in columns.items()}


def read_labels(
    labels: Any, rows: int, classes: Sequence[Any] | None, communicator: Communicator = ALONE
) -> Labels:
    """Check and encode; each concept has the classes found in it unless they are given.

    Raises:
        ValueError: labels refused, or over ranks classes that JSON cannot hold and no list of them.
    """
    with communicator.together():
        concepts = split_concepts(labels, rows)
        named = [
            ("labels" if name is None else f"labels[{name!r}]", values)
            for name, values in concepts.items()
        ]
        orders = [distinct(values, w) if classes is None else classes for w, values in named]
        odd = [c for order in orders for c in order if not isinstance(c, (str, int, float))]
        if odd and classes is None and communicator.size > 1:
            raise ValueError(
                f"labels: ranks tell each other of classes that are strings or numbers, found "
                f"{odd[0]!r}: pass classes="
            )
    communicator.same(concepts=tuple(concepts))
    if classes is None and communicator.size > 1:
        found = [json.loads(text) for text in communicator.texts(json.dumps(orders))]
        orders = [in_order(c for part in parts for c in part) for parts in zip(*found, strict=True)]
    with communicator.together():
        codes, orders = zip(
            *(encode(v, order, w) for (w, v), order in zip(named, orders, strict=True)), strict=True
        )
    whole = communicator.stack(np.stack(codes, axis=1))  # ranks add rows, the first axis
    return Labels(tuple(concepts), np.ascontiguousarray(whole.T), orders)


def probe_name(layer: str, concept: str | None) -> str:
    """The probe's name in a set: the layer's, and behind a slash the concept's if it has one."""
    return layer if concept is None else f"{layer}/{concept}"


def check_folds(cv: Any, validation: Any, stopping: Any) -> None:
    """A number of folds, without validation rows or early stopping beside them."""
    if stopping not in ("certificate", "validation"):
        raise ValueError(f'stopping: expected "certificate" or "validation", found {stopping!r}')
    if cv is None:
        return
    if isinstance(cv, bool) or not isinstance(cv, int) or cv < 2:
        raise ValueError(f"cv: expected None or at least 2 folds, found {cv!r}")
    if validation is not None:
        raise ValueError("cv: folds are held out of the rows themselves; omit validation=, or cv=")
    if stopping == "validation":
        raise ValueError("cv: the fit to all rows has none to stop by; omit cv=, or stopping=")


def check_two_classes(codes: np.ndarray, weights: np.ndarray | None, what: str = "labels") -> None:
    """A probe needs two classes among the rows that count."""
    present = np.unique(codes if weights is None else codes[weights > 0])
    if len(present) < 2:
        raise ValueError(f"{what}: expected at least two classes, found {len(present)}")


def check_weights(weights: Any, rows: int, communicator: Communicator = ALONE) -> np.ndarray | None:
    """Row weights of all ranks as a host vector `(n,)` float64.

    Raises:
        ValueError: wrong length, a negative or non-finite weight, or no positive one.
    """
    if weights is None:
        return None
    with communicator.together():
        values = np.asarray(to_numpy(as_array(weights)), dtype=np.float64)
        if values.shape != (rows,):
            raise ValueError(f"sample_weight: expected shape ({rows},), found {values.shape}")
        bad = ~(np.isfinite(values) & (values >= 0))
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"sample_weight: expected finite weights >= 0, found {values[row]} in row {row}"
            )
    values = communicator.stack(values)
    if not (values > 0).any():
        raise ValueError("sample_weight: expected a positive weight, found none")
    return values


def check_l2(l2: Any) -> np.ndarray | None:
    """Penalties as a host vector, or None for "auto".

    Raises:
        ValueError: another string, an empty list, a negative or non-finite penalty.
    """
    if isinstance(l2, str):
        if l2 != "auto":
            raise ValueError(f'l2: expected a number, a list of numbers or "auto", found {l2!r}')
        return None
    values = np.atleast_1d(np.asarray(l2, dtype=np.float64))
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"l2: expected a number or a non-empty list, found shape {values.shape}")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"l2: expected finite penalties of at least 0, found {values.tolist()}")
    return values


def check_solver(solver: str | Solver) -> Solver:
    """A solver from its name or itself."""
    if not isinstance(solver, str):
        return solver
    if solver not in SOLVERS:
        near = get_close_matches(solver, SOLVERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"solver: unknown name {solver!r}{hint} (known: {', '.join(SOLVERS)})")
    return SOLVERS[solver]()


def check_layer(name: str, known: Iterable[str], what: str) -> None:
    """A layer that has to be among the known ones."""
    known = list(known)
    if name not in known:
        near = get_close_matches(name, known, n=3) or known[:3]
        raise ValueError(f"{what}: no layer {name!r}; the nearest are {', '.join(map(repr, near))}")
