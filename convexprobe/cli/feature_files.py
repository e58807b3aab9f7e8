"""Which arrays of a file are features, labels and groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convexprobe._files import open_regular
from convexprobe.activations.directory import open_activations
from convexprobe.activations.files import is_readable, read_arrays
from convexprobe.activations.layers import Activations
from convexprobe.arrays.backend import to_numpy

LABELS = ("labels", "label", "y", "targets", "target")
"""Names under which labels are looked for beside the features."""

ALONE = "activations"
"""The name of the array of a file that gives it none; `fit_probes` calls such an array so, too."""


def read_columns(path: str | Path) -> dict[str, Any]:
    """All arrays of a file by name, or of a directory that `open_activations` opens.

    Raises:
        OSError: the file cannot be opened.
        ImportError: an HDF5 file, and h5py is not installed.
        ValueError: another suffix, a damaged file, or one that only running its code would read.
    """
    path = Path(path)
    if path.is_dir():
        layers, labels = open_activations(path)
        columns = labels if isinstance(labels, Mapping) else {LABELS[0]: labels}
        return {**layers, **{name: x for name, x in columns.items() if x is not None}}
    open_regular(path).close()  # its errors name the file
    if not is_readable(path):
        raise ValueError(
            f"{str(path)!r}: expected a directory of activations, or a file .npy .npz .pt .pth "
            ".safetensors .h5 .hdf5"
        )
    return {name or ALONE: array for name, array in read_arrays(path).items()}


def read_features(
    path: str | Path, labels: str | None, *, layers: list[str] | None = None, needs_labels: bool
) -> tuple[Activations, Any, dict[str, Any]]:
    """Features and labels of a file, or of two.

    Args:
        path: a file or a directory of activations. Its arrays of two axes are the layers.
        labels: the name of an array in it; or a file, or "FILE:NAME" for one array of a file. A
            file with several arrays holds concepts. None looks for one of `LABELS`.
        layers: names of the layers to take; None takes all.
        needs_labels: whether a file without labels is refused.

    Returns:
        The layers, the labels (an array, or arrays by concept, or None), and the file's other
        arrays.

    Raises:
        OSError, ImportError, ValueError: as `read_columns`; no such array, layer or labels.
    """
    arrays = read_columns(path)
    tokens = open_activations(path)[0] if Path(path).is_dir() else None
    known = None
    if labels is not None:
        known = read_column("labels", labels, arrays)
        arrays.pop(labels, None)
    else:
        names = [name for name in LABELS if name in arrays and len(arrays[name].shape) == 1]
        if len(names) > 1 or (needs_labels and not names):
            found = ", ".join(map(repr, names or arrays))
            raise ValueError(f"labels: {str(path)!r} has {found}; name the labels with --labels")
        known = arrays.pop(names[0]) if names else None
    rest = {name: x for name, x in arrays.items() if len(x.shape) < 2}
    rows = {name: x for name, x in arrays.items() if name not in rest}
    for name in layers or ():
        if name not in rows:
            raise ValueError(f"layers: {str(path)!r} has no layer {name!r}, found {[*rows]}")
    if not rows:
        raise ValueError(f"{str(path)!r}: expected features (n, d), found {described(arrays)}")
    chosen = {name: rows[name] for name in layers or rows}
    examples = (None, None) if tokens is None else (tokens.examples, tokens.positions)
    return Activations(chosen, *examples), known, rest


def read_column(what: str, given: str, arrays: Mapping[str, Any]) -> Any:
    """The array that an argument means: a name among `arrays`, "FILE" or "FILE:NAME".

    Raises:
        OSError, ImportError, ValueError: neither a name nor a file; as `read_columns`.
    """
    if given in arrays:
        return _host(arrays[given])
    file, _, name = given.rpartition(":")
    if not file or Path(given).exists():
        file, name = given, ""
    if not Path(file).exists():
        raise ValueError(f"{what}: expected a file or an array among {[*arrays]}, found {given!r}")
    found = {key: _host(value) for key, value in read_columns(file).items()}
    if name:
        if name not in found:
            raise ValueError(f"{what}: {file!r} has no array {name!r}, found {[*found]}")
        return found[name]
    return next(iter(found.values())) if len(found) == 1 else found


def described(arrays: Mapping[str, Any]) -> str:
    """Names and shapes in a line."""
    each = [f"{name} {tuple(map(int, x.shape))}" for name, x in arrays.items()]
    return ", ".join(each) or "none"


def _host(array: Any) -> Any:
    """A column as NumPy has it; one column `(n, 1)` of a file is `(n,)`."""
    values = array if isinstance(array, np.ndarray) else to_numpy(array)
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
