"""Read one value a row from any container: arrays of any library, series, lists of anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from convexprobe._arguments import shown
from convexprobe.arrays.backend import Array, as_array, is_array, to_numpy


def matrix_or_values(values: Any, what: str) -> Array | Any:
    """An array of any library as `as_array` has it; anything else as it is.

    Raises:
        TypeError: a masked array.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{what}: found a masked array; leave its masked rows out of all inputs")
    if is_array(values) or hasattr(values, "__dlpack__"):  # the protocol's own test
        return as_array(values)
    return np.asarray(values) if hasattr(values, "__array__") else values  # a series, an index


def host_vector(values: Any, what: str, hint: str = "") -> np.ndarray:
    """The values as a host array: numbers or strings, or objects for anything else.

    An item of a list may be an array of one element, and counts as that. An array that has not one
    axis comes back as it is.

    Args:
        values: an array, or any iterable.
        what: what messages call them.
        hint: what to do about items that are no single values.

    Raises:
        TypeError: not iterable, a string, or a masked array.
        ValueError: an item that is not hashable, or an array of several elements.
    """
    values = matrix_or_values(values, what)
    if is_array(values):
        values = to_numpy(values)
        if values.dtype.kind not in "OT" or values.ndim != 1:
            return values
    elif isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{what}: expected an array or a list, found {shown(values)}")
    items = list(values)
    if not {type(item) for item in items} <= {bool, int, float, str}:
        items = [_item(item, f"{what}: row {row}", hint) for row, item in enumerate(items)]
    return as_vector(items)


def _item(item: Any, where: str, hint: str) -> Any:
    if is_array(item) or isinstance(item, np.generic):
        array = to_numpy(as_array(item))
        if array.size != 1:
            shape = f"an array of shape {array.shape}"
            raise ValueError(f"{where} is {shape}, expected one value a row{hint}")
        item = array.reshape(-1)[0]
        item = item.item() if isinstance(item, np.generic) else item
    try:
        hash(item)
    except TypeError:
        raise ValueError(
            f"{where} is {shown(item)}, expected one number, string or other hashable value a "
            f"row{hint}"
        ) from None
    return item


def as_vector(items: Sequence[Any]) -> np.ndarray:
    """Numbers or strings of one type as an array `(n,)` of their own, anything else as objects."""
    if len({type(item) for item in items}) == 1 and isinstance(items[0], (int, float, str)):
        return np.asarray(items)
    return np.fromiter(items, dtype=object, count=len(items))
