"""The format of activations in a directory: row blocks, and the manifest that lists them.

A directory holds row blocks `00000.safetensors`, `00001.safetensors`, ... and `manifest.json`. A
block has the rows of every layer for the same examples or tokens, tensors `"activations/NAME"`
`(r, d)`, and columns `(r,)`: the `"labels"` if there are any, or `"labels/NAME"` of each concept,
and of tokens the `"examples"` and `"positions"`. Any program that reads safetensors can read it.
The manifest lists

    format, complete   the version; whether the extraction reached its end
    model              SHA-256 of the parameters and buffers
    request            points, dtype and pools; the model's code; what cannot be identified
    layers             names, width and dtype of each, in the order of computation
    columns            the dtype of each column
    blocks             what `Block` has, of each
    crc32              CRC-32 of all this

and is replaced after every block, so that every block that it lists is complete on disk.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from convexprobe._arguments import check_bool, check_integer
from convexprobe._files import read_json, write_whole
from convexprobe._hashing import raw_bytes

FORMAT = "convexprobe-activations-3"
MANIFEST = "manifest.json"
LABELS, EXAMPLES, POSITIONS = "labels", "examples", "positions"
"""The columns that blocks may have beside the rows of layers."""

StoredLabels = Tensor | dict[str, Tensor] | None
"""The labels of the rows `(n,)`, or those of each concept by name; None if there are none."""

MOST = 256 << 20
"""Bytes of a manifest that is read: more would be a directory of hundreds of terabytes."""

FLOATS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""The dtypes that layers may have, as torch and as safetensors call them."""

DTYPES = {
    **FLOATS,
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bool": "BOOL",
}
"""The dtypes that columns may have."""


@dataclass(frozen=True)
class Layer:
    """A layer of rows.

    Attributes:
        names: all the names under which it was asked for.
        width: the features of a row.
        dtype: of the stored values, as torch calls it.
    """

    names: tuple[str, ...]
    width: int
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in self._dtypes():
            raise ValueError(f"{self.key!r} has the dtype {self.dtype}, which cannot be stored")

    @classmethod
    def of(cls, names: Iterable[str], rows: Tensor) -> Layer:
        """The layer of these rows `(n, d)`."""
        return cls(tuple(names), rows.shape[1], dtype_name(rows))

    def _dtypes(self) -> Mapping[str, str]:
        return FLOATS

    def shape(self, rows: int) -> list[int]:
        """The shape of its tensor in a block of so many rows."""
        return [rows, self.width]

    @property
    def key(self) -> str:
        """The name of its tensor in every block."""
        return f"activations/{self.names[0]}"

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.width * getattr(torch, self.dtype).itemsize

    def offset(self, header: dict[str, Any], rows: int) -> int:
        """Where its bytes begin behind the header of a block; a ValueError if that is wrong."""
        entry = header[self.key]
        start, stop = (check_integer("data_offsets", at) for at in entry["data_offsets"])
        if [entry["dtype"], entry["shape"]] != [DTYPES[self.dtype], self.shape(rows)]:
            raise ValueError(f"{self.key!r} is {entry['dtype']} {entry['shape']}")
        if stop - start != rows * self.row_bytes:
            raise ValueError(f"{self.key!r} has {stop - start} bytes")
        return start


class Column(Layer):
    """A number for each row: its label, its example or its position; read as rows of width 1."""

    def _dtypes(self) -> Mapping[str, str]:
        return DTYPES

    def shape(self, rows: int) -> list[int]:
        return [rows]

    @property
    def key(self) -> str:
        return self.names[0]


def labels_column(concept: str | None) -> str:
    """The name of the column that has the labels, or those of a concept."""
    return LABELS if concept is None else f"{LABELS}/{concept}"


def _concept(column: str) -> str | None:
    """The concept whose labels a column has, if it is one of those."""
    return column.removeprefix(f"{LABELS}/") if column.startswith(f"{LABELS}/") else None


def labels_of(columns: Mapping[str, Tensor]) -> StoredLabels:
    """The labels among columns."""
    concepts = {c: column for key, column in columns.items() if (c := _concept(key)) is not None}
    return concepts or columns.get(LABELS)


def dtype_name(tensor: Tensor) -> str:
    """The dtype, as torch calls it."""
    return str(tensor.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Block:
    """One file of rows.

    Attributes:
        bytes: the file's size.
        rows: the number of its rows, of examples or tokens.
        batches: the number of the loader's batches that they came from.
        inputs: CRC-32 of those batches, by which a resumed extraction recognises other data.
        crc32: CRC-32 of the bytes of each tensor, by its name.
    """

    bytes: int
    rows: int
    batches: int
    inputs: int
    crc32: dict[str, int]

    @classmethod
    def write(
        cls, directory: Path, number: int, tensors: Mapping[str, Tensor], batches: int, inputs: int
    ) -> Block:
        """Write the file of a block."""
        crc32 = {key: zlib.crc32(raw_bytes(tensor)) for key, tensor in tensors.items()}
        data = save(dict(tensors))
        write_whole(directory / block_name(number), data)
        return cls(len(data), len(next(iter(tensors.values()))), batches, inputs, crc32)


def block_name(number: int) -> str:
    """A block's file name, which no manifest can change to that of another file."""
    return f"{number:05d}.safetensors"


@dataclass(frozen=True)
class Manifest:
    """What a directory contains; see the module's docstring."""

    model: str
    request: dict[str, Any]
    layers: tuple[Layer, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    complete: bool = False

    @property
    def rows(self) -> int:
        """The rows that every layer has."""
        return sum(block.rows for block in self.blocks)

    @property
    def tensors(self) -> tuple[Layer, ...]:
        """The layers and the columns."""
        return (*self.layers, *(Column((key,), 1, dtype) for key, dtype in self.columns.items()))

    def write(self, directory: Path) -> None:
        """Replace the directory's manifest; if it cannot be written, OSError, and the old stays."""
        content = {"format": FORMAT, **asdict(self)}
        content["crc32"] = _checksum(content)
        write_whole(directory / MANIFEST, json.dumps(content).encode())

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """The manifest of a directory.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of something else.
        """
        path = directory / MANIFEST
        try:
            content = read_json(path, MOST)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(
                f"{os.fspath(path)!r}: no such file, so no activations here"
            ) from None
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"expected the format {FORMAT!r}, found {content['format']!r}")
            if content.pop("crc32") != _checksum(content):
                raise ValueError("its checksum is another one")
            return cls._parse(content)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"{os.fspath(path)!r}: damaged or not of activations: {why}; delete the directory "
                "and call extract again"
            ) from None

    @classmethod
    def _parse(cls, content: dict[str, Any]) -> Manifest:
        """Check every value, since a checksum proves no good will."""
        if not isinstance(content["model"], str) or not isinstance(content["request"], dict):
            raise TypeError("model or request is of another type")
        layers, columns = tuple(map(_layer, content["layers"])), dict(content["columns"])
        labels = [key for key in columns if _concept(key) is not None]
        if odd := set(columns) - {LABELS, EXAMPLES, POSITIONS, *labels}:
            raise ValueError(f"there is no column {min(odd)!r}")
        if labels and LABELS in columns:
            raise ValueError("there are labels beside those of concepts")
        names = [name for layer in layers for name in layer.names]
        if len(set(names)) < len(names):
            raise ValueError("two layers have one name")
        complete = check_bool("complete", content["complete"])
        out = cls(content["model"], content["request"], layers, columns, (), complete)
        blocks = tuple(_block(entry, out.tensors) for entry in content["blocks"])
        if blocks and not layers:
            raise ValueError("there are blocks, and no layers")
        return replace(out, blocks=blocks)

    def check_sizes(self, directory: Path) -> int:
        """How many blocks, from the first on, exist with the size that the manifest says."""
        for number, block in enumerate(self.blocks):
            path = directory / block_name(number)
            if not path.is_file() or path.stat().st_size != block.bytes:
                return number
        return len(self.blocks)


def _layer(entry: dict[str, Any]) -> Layer:
    names = entry["names"]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise TypeError("a layer has no names")
    return Layer(tuple(names), check_integer("width", entry["width"], least=1), entry["dtype"])


def _block(entry: dict[str, Any], tensors: tuple[Layer, ...]) -> Block:
    size, rows, batches = (
        check_integer(name, entry[name], least=1) for name in ("bytes", "rows", "batches")
    )
    crc32 = {key: check_integer("crc32", value) for key, value in entry["crc32"].items()}
    if set(crc32) != {tensor.key for tensor in tensors}:
        raise ValueError("a block lists other tensors than the layers")
    if rows * sum(tensor.row_bytes for tensor in tensors) >= size:
        raise ValueError(f"a block of {size} bytes cannot have {rows} rows")
    return Block(size, rows, batches, check_integer("inputs", entry["inputs"]), crc32)


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())
