"""The format of activations in a directory: row blocks, and the manifest that lists them.

A directory holds row blocks `00000.safetensors`, `00001.safetensors`, ... and `manifest.json`. A
block has the rows of every layer for the same examples, tensors `"activations/NAME"` `(r, d)`, and
their `"labels"` `(r,)` if there are any. Any program that reads safetensors can read it. The
manifest lists

    format, complete   the version; whether the extraction reached its end
    model              SHA-256 of the parameters and buffers
    request            what was asked for: points, dtype, pools
    layers             names, width and dtype of each, in the order of computation
    labels             whether there are labels
    blocks             what `Block` has, of each

and is replaced after every block, so that every block that it lists is complete on disk.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from convexprobe._files import write_whole

FORMAT = "convexprobe-activations-1"
MANIFEST = "manifest.json"
LABELS = "labels"


@dataclass(frozen=True)
class Layer:
    """One layer of a manifest; `names` are all the names under which it was asked for."""

    names: tuple[str, ...]
    width: int
    dtype: str

    @property
    def key(self) -> str:
        """The name of its tensor in every block."""
        return f"activations/{self.names[0]}"


@dataclass(frozen=True)
class Block:
    """One file of a manifest.

    Attributes:
        file: the file's name in the directory.
        bytes: the file's size.
        rows: the number of examples.
        batches: the number of the loader's batches that they came from.
        inputs: CRC-32 of those batches, by which a resumed extraction recognises other data.
        crc32: CRC-32 of the bytes of each tensor, by its name.
    """

    file: str
    bytes: int
    rows: int
    batches: int
    inputs: int
    crc32: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """What a directory contains; see the module's docstring."""

    model: str
    request: dict[str, Any]
    layers: tuple[Layer, ...]
    labels: bool
    blocks: tuple[Block, ...]
    complete: bool = False

    @property
    def rows(self) -> int:
        """The rows that every layer has."""
        return sum(block.rows for block in self.blocks)

    def write(self, directory: Path) -> None:
        """Replace the directory's manifest; if it cannot be written, OSError, and the old stays."""
        write_whole(directory / MANIFEST, json.dumps({"format": FORMAT, **asdict(self)}).encode())

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """The manifest of a directory.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of something else.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{os.fspath(path)!r}: no such file, so no activations here")
        try:
            content = json.loads(path.read_bytes())
            if content.pop("format") != FORMAT:
                raise ValueError(f"expected the format {FORMAT!r}")
            layers = [Layer(**{**e, "names": tuple(e["names"])}) for e in content.pop("layers")]
            blocks = [Block(**entry) for entry in content.pop("blocks")]
            out = cls(layers=tuple(layers), blocks=tuple(blocks), **content)
            for layer in out.layers:
                if not getattr(torch, layer.dtype).is_floating_point or layer.width < 1:
                    raise ValueError(f"layer {layer.names[0]!r} has no such dtype or width")
            keys = {layer.key for layer in out.layers} | ({LABELS} if out.labels else set())
            if any(set(b.crc32) != keys or Path(b.file).name != b.file for b in out.blocks):
                raise ValueError("a block lists other tensors than the layers, or another folder")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{os.fspath(path)!r}: damaged or not of activations: {error}"
            ) from None
        return out

    def check_sizes(self, directory: Path) -> int:
        """How many blocks, from the first on, exist with the size that the manifest says."""
        for index, block in enumerate(self.blocks):
            path = directory / block.file
            if not path.is_file() or path.stat().st_size != block.bytes:
                return index
        return len(self.blocks)
