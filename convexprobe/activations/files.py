"""Activations in files of others: NumPy's, safetensors, torch's, HDF5, and folders of them.

| file | arrays in it | their rows |
|---|---|---|
| `.npy` | one layer, called like the file | mapped |
| `.safetensors`, `.pt`, `.pth` | one a name, or the one tensor that a torch file holds | mapped |
| `.h5`, `.hdf5` | one a data set, groups joined by "/" | mapped; in memory if in chunks |
| `.npz` | one a name | in memory |
| a folder | those of its files, by name and number: `layer_2` before `layer_10` | |

An array called "labels" has the labels; those called "labels/tense" or "labels.tense" are the
concept "tense". Every other array has to be a layer, `(n, d)`. No pickle is read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from convexprobe._files import open_regular
from convexprobe.activations.layers import Activations
from convexprobe.activations.manifest import FLOATS, LABELS
from convexprobe.activations.stored import HostRows, empty_rows

Arrays = dict[str, Any]
"""Arrays by name, NumPy's or torch's."""


class MappedRows(HostRows):
    """Rows `(n, d)` of a file, which the system reads when they are needed.

    `load()` reads them into memory of their own.
    """

    def load(self, device: torch.device | str = "cpu", *, pinned: bool = False) -> Tensor:
        return empty_rows(self.shape, self.dtype, device, pinned=pinned).copy_(self.tensor)


def is_readable(path: Path) -> bool:
    """Whether a path is a file of arrays by its suffix, or a folder that has one."""
    if path.is_dir():
        return any(map(_is_file, path.iterdir()))
    return _is_file(path)


def read_files(path: Path) -> tuple[Activations, Any]:
    """The layers in a file or a folder, in order, and the labels.

    Returns:
        The rows `(n, d)` by layer; and the labels, `(n,)` or by concept, None if there are none.

    Raises:
        ValueError: an array that cannot be read or is of objects, is no layer, or has another
            number of rows; labels or a layer twice; or no layer.
        ImportError: an HDF5 file, and h5py is not installed.
    """
    layers: dict[str, MappedRows] = {}
    labels: dict[str, Any] = {}
    first = ("", 0)
    for file in sorted(filter(_is_file, path.iterdir()), key=_order) if path.is_dir() else [path]:
        for name, array in read_arrays(file).items():
            place = f"{str(file)!r}" + (f", {name!r}" if name else "")
            layer = "/".join([file.stem] * (path.is_dir() or not name) + [name] * bool(name))
            concept = next((c for c in map(_concept, (layer, name)) if c is not None), None)
            if concept is not None:
                if concept in labels:
                    raise ValueError(f"{place}: labels for the second time; keep one of them")
                labels[concept] = _labels(array, place)
            elif layer in layers:
                raise ValueError(f"{place}: layer {layer!r} for the second time; rename one")
            else:
                layers[layer] = MappedRows(_rows(array, place))
            rows = len(array)
            first = first if first[0] else (place, rows)
            if rows != first[1]:
                raise ValueError(f"{place}: expected {first[1]} rows like {first[0]}, found {rows}")
    if not layers:
        raise ValueError(f"{str(path)!r}: expected a layer beside the labels, found none")
    if "" in labels and len(labels) > 1:
        raise ValueError(f"{str(path)!r}: expected labels or concepts, found both")
    return Activations(layers), labels.get("", labels or None)


def _is_file(path: Path) -> bool:
    return path.suffix.lower() in _READERS and not path.name.startswith(".") and not path.is_dir()


def _order(path: Path) -> list[Any]:
    return _natural(path.name)


def _natural(name: str) -> list[Any]:
    """A key that sorts numbers in names by their size."""
    return [(not p.isdigit(), int(p) if p.isdigit() else p) for p in re.split("([0-9]+)", name)]


def _concept(name: str) -> str | None:
    """The concept whose labels a name has, "" for plain labels; None for a layer."""
    found = re.fullmatch(rf"{LABELS}(?:[./](.+))?", name)
    return None if found is None else found[1] or ""


def read_arrays(path: Path) -> Arrays:
    """The arrays in a file; the name of a single one is empty.

    Raises:
        ValueError: they cannot be read, or are of objects.
        ImportError: an HDF5 file, and h5py is not installed.
    """
    try:
        with open_regular(path):  # a pipe would block
            pass
        return _READERS[path.suffix.lower()](path)
    except ImportError:
        raise
    except Exception as error:  # libraries raise whatever a foreign file leads to
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "allow_pickle" in reason or "Python objects" in reason:
            reason = "it holds pickled objects; save an array of numbers or of strings"
        raise ValueError(f"{str(path)!r}: cannot be read as arrays: {reason}") from error


def _npy(path: Path) -> Arrays:
    return {"": np.load(path, mmap_mode="r", allow_pickle=False)}


def _npz(path: Path) -> Arrays:
    # opened here: NumPy leaves a damaged file open
    with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _safetensors(path: Path) -> Arrays:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys(), key=_natural)}


def _torch(path: Path) -> Arrays:
    with warnings.catch_warnings(action="ignore"):  # of old formats: it reads or it fails
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(content, Tensor):
        return {"": content}
    if isinstance(content, Mapping) and all(
        isinstance(value, Tensor) for value in content.values()
    ):
        return {str(name): value for name, value in content.items()}
    raise ValueError(f"expected a tensor or tensors by name, found {type(content).__name__}")


def _hdf5(path: Path) -> Arrays:
    try:
        import h5py
    except ImportError:
        raise ImportError(
            f"{str(path)!r}: an HDF5 file needs h5py; pip install convexprobe[hdf5]"
        ) from None
    arrays: Arrays = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if h5py.check_string_dtype(item.dtype):
            arrays[name] = item.asstr()[()].astype(str)
        elif item.dtype.hasobject:
            raise ValueError(f"{name!r} has no plain numbers, but {item.dtype}")
        elif (offset := item.id.get_offset()) is not None and not item.external and item.size:
            arrays[name] = np.memmap(path, item.dtype, "r", offset, item.shape)
        else:
            arrays[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return dict(sorted(arrays.items(), key=lambda item: _natural(item[0])))


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
}


def _rows(array: Any, place: str) -> Tensor:
    """The rows `(n, d)` of a layer; whole numbers become float32, as everywhere."""
    shape = tuple(array.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"{place}: expected a layer of shape (rows, features), found {shape}; reshape it, or "
            f"call it {LABELS!r} if it has the labels"
        )
    tensor = _tensor(array, place)
    if tensor.is_floating_point() and str(tensor.dtype).removeprefix("torch.") in FLOATS:
        return tensor
    if tensor.is_complex() or tensor.is_floating_point():
        raise ValueError(f"{place}: expected real numbers, found {tensor.dtype}")
    return tensor.float()


def _labels(array: Any, place: str) -> Any:
    if not 1 <= array.ndim <= 2:
        raise ValueError(f"{place}: expected labels of shape (rows,), found {tuple(array.shape)}")
    if isinstance(array, np.ndarray) and array.dtype.kind in "SU":
        return np.array(array)
    return _tensor(array, place).clone()


def _tensor(array: Any, place: str) -> Tensor:
    """The array as a tensor, of its own memory where that is possible."""
    if isinstance(array, Tensor):
        return array
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        with warnings.catch_warnings(action="ignore"):  # of mapped rows, which nobody writes to
            return torch.from_numpy(array)
    except TypeError:
        raise ValueError(f"{place}: expected numbers, found dtype {array.dtype}") from None
