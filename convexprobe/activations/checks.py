"""Check activations before any work is done, and bring them into one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch

from convexprobe.activations.source import Source
from convexprobe.activations.stored import StoredRows
from convexprobe.arrays.backend import Array, as_array, cast, is_real, namespace, to_numpy


def check_activations(
    activations: Any, what: str = "activations", *, min_rows: int = 1
) -> dict[str, Array | StoredRows]:
    """The rows `(n, d)` by layer name; integers and booleans become float32.

    Args:
        activations: as for `fit_probes`.
        what: the name of the argument, for messages.
        min_rows: the fewest rows that a layer may have.

    Raises:
        TypeError: a layer is not a real numeric array.
        ValueError: no layers, a layer that is empty or not two-dimensional, or unequal row counts.
    """
    if not isinstance(activations, Mapping):
        activations = {"activations": activations}
    if not activations:
        raise ValueError(f"{what}: expected at least one layer, found none")
    layers: dict[str, Array | StoredRows] = {}
    for name, value in activations.items():
        where = f"{what}[{name!r}]"
        if not isinstance(name, str):
            raise TypeError(f"{what}: layer names must be strings, found {name!r}")
        if isinstance(value, StoredRows):
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
        if array.shape[0] < min_rows or not array.shape[1]:
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
    """Raise a ValueError that names the first row with NaN or Inf, if there is one; one pass."""
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
    """Raise a ValueError unless torch can use the device, and the limit is a number of bytes."""
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (AssertionError, RuntimeError, TypeError) as error:  # torch without CUDA asserts
            raise ValueError(f"device: found {device!r}, which cannot be used: {error}") from None
    real = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if limit is not None and not (real and limit > 0):
        raise ValueError(f"memory_limit: expected a positive number of bytes, found {limit!r}")


def check_layer(name: str, known: Iterable[str], what: str) -> None:
    """Raise a ValueError unless the layer is among the known ones."""
    known = list(known)
    if name not in known:
        near = get_close_matches(name, known, n=3) or known[:3]
        raise ValueError(f"{what}: no layer {name!r}; the nearest are {', '.join(map(repr, near))}")
