"""Check activations before any work is done, and bring them into one form."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch

from convexprobe._arguments import check_real, shown
from convexprobe.activations.manifest import FLOATS
from convexprobe.activations.source import Source
from convexprobe.activations.stored import StoredRows
from convexprobe.arrays.backend import Array, as_array, cast, is_real, namespace, to_numpy


def check_activations(
    activations: Any, what: str = "activations", *, min_rows: int = 1, values: bool = True
) -> dict[str, Array | StoredRows]:
    """The rows `(n, d)` by layer name; integers and booleans become float32.

    Args:
        activations: as for `fit_probes`.
        what: the name of the argument, for messages.
        min_rows: the fewest rows that a layer may have.
        values: refuse tensors on the device "meta", which have a shape and no values.

    Raises:
        TypeError: a layer is not an array of real numbers that float64 can hold.
        ValueError: no layers, a layer that is empty or not two-dimensional, or unequal row counts.
    """
    if not isinstance(activations, Mapping):
        activations = {"activations": activations}
    if not activations:
        raise ValueError(f"{what}: expected at least one layer, found none")
    layers: dict[str, Array | StoredRows] = {}
    for name, value in activations.items():
        if not isinstance(name, str):
            raise TypeError(f"{what}: layer names must be strings, found {shown(name)}")
        where = f"{what}[{name!r}]"
        if values and isinstance(value, torch.Tensor) and value.is_meta:
            raise TypeError(f"{where}: expected values, found a tensor on the device 'meta'")
        array = value if isinstance(value, StoredRows) else _matrix(value, where)
        if array.shape[0] < min_rows or not array.shape[1]:
            raise ValueError(
                f"{where}: expected at least one row and one feature, found {tuple(array.shape)}"
            )
        layers[name] = array
        first, rows = next((n, x.shape[0]) for n, x in layers.items())
        if array.shape[0] != rows:
            raise ValueError(
                f"{where}: expected {rows} rows like layer {first!r}, found {array.shape[0]}"
            )
    return layers


def _matrix(value: Any, where: str) -> Array:
    """A layer's rows as a floating-point array `(n, d)`; what cannot be one is named."""
    if why := _unusable(value):
        raise TypeError(f"{where}: expected an array of real numbers, found {why}")
    try:
        array = as_array(value)
    except MemoryError:
        raise
    except Exception as error:  # of whatever library the value is from
        if odd := _ragged(value):
            raise ValueError(f"{where}: expected rows of one length, found {odd}") from None
        raise TypeError(
            f"{where}: found {shown(value)}, which cannot be read as an array; pass a NumPy array "
            f"or a torch tensor ({type(error).__name__}: {error})"
        ) from error
    if not is_real(array):
        raise TypeError(
            f"{where}: expected a real numeric array, found dtype {array.dtype}; convert it to "
            "float32 or float64, or pass real and imaginary parts as features"
        )
    if array.ndim != 2:
        raise ValueError(
            f"{where}: expected shape (rows, features), found {tuple(array.shape)}; "
            "reshape it, or pool while extracting"
        )
    xp = namespace(array)
    return array if xp.isdtype(array.dtype, "real floating") else cast(array, xp.float32)


def _unusable(value: Any) -> str:
    """What an array is whose numbers cannot be used as they are, and the remedy; else empty."""
    if isinstance(value, np.ma.MaskedArray):
        return "a masked array, whose mask would be ignored; drop masked rows, or use x.filled(0)"
    if hasattr(value, "toarray"):  # SciPy's sparse arrays and matrices, and others' like them
        return f"a sparse {type(value).__name__}; pass x.toarray()"
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.dtype.itemsize > 8:
        return f"dtype {value.dtype}, wider than float64; pass x.astype(np.float64)"
    if not isinstance(value, torch.Tensor):
        return ""
    if value.is_nested:
        return "a nested tensor; pool it to one row an example"
    if value.layout != torch.strided:
        return f"a sparse tensor ({value.layout}); pass x.to_dense()"
    if value.is_quantized:
        return f"a quantized tensor ({value.dtype}); pass x.dequantize()"
    if value.is_floating_point() and str(value.dtype).removeprefix("torch.") not in FLOATS:
        return f"dtype {value.dtype}, which torch cannot calculate with; pass x.float()"
    return ""


def _ragged(value: Any) -> str:
    """The first row of a sequence whose length is not that of row 0; else empty."""
    with suppress(TypeError):  # of what has no length
        for i, row in enumerate(value if isinstance(value, Sequence) else ()):
            if len(row) != len(value[0]):
                return f"{len(value[0])} features in row 0 and {len(row)} in row {i}"
    return ""


def check_finite(rows: Source, where: str, most: float = math.inf) -> None:
    """Raise a ValueError that names the first value that is NaN, infinite or above `most` in size.

    It reads all rows once.
    """
    count, first = 0, ""
    for span, x in rows.blocks():
        xp = namespace(x)
        bad = ~xp.isfinite(x) | (xp.abs(x) > most)
        wrong = to_numpy(xp.any(bad, axis=1))
        if wrong.any() and not first:
            row = int(wrong.argmax())
            column = int(to_numpy(bad[row, :]).argmax())
            first = f"{float(x[row, column])} in row {span.start + row}, feature {column}"
        count += int(wrong.sum())
    if count:
        bound, remedy = "", ""
        if most < math.inf:
            bound, remedy = f" below {most:.1e} in size", "; divide all rows by a constant"
        raise ValueError(
            f"{where}: expected finite values{bound}, found {first} (bad rows: {count} of "
            f"{rows.n}){remedy}"
        )


def check_memory(device: Any, limit: Any) -> None:
    """Raise an error unless torch can use the device, and the limit is a number of bytes."""
    if device is not None:
        try:
            usable = torch.empty(0, device=device).device.type != "meta"
            error: object = "it holds no values"
        except Exception as raised:  # torch without CUDA asserts
            usable, error = False, raised
        if not usable:
            raise ValueError(f"device: found {device!r}, which cannot be used: {error}")
    if limit is not None:
        check_real("memory_limit", limit, above=0)


def check_layer(name: str, known: Collection[str], what: str) -> None:
    """Raise a ValueError unless the layer is among the known ones."""
    if name not in known:
        near = get_close_matches(name, known, n=3) or list(known)[:3]
        raise ValueError(f"{what}: no layer {name!r}; the nearest are {', '.join(map(repr, near))}")
