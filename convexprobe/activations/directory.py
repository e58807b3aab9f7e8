"""Read activations from a directory, and check them; `activations.manifest` has the format.

Rows are read straight into a buffer. A tensor is compared with its CRC-32 the first time that it is
read from end to end; `docs/decisions/reading.md` has the speeds.
"""

from __future__ import annotations

import json
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convexprobe._arguments import check_bool, check_path
from convexprobe._files import open_regular
from convexprobe._hashing import raw_bytes
from convexprobe.activations.files import is_readable, read_files
from convexprobe.activations.layers import Activations
from convexprobe.activations.manifest import (
    EXAMPLES,
    MANIFEST,
    POSITIONS,
    Block,
    Column,
    Layer,
    Manifest,
    block_name,
    labels_of,
)
from convexprobe.activations.stored import CHUNK, StoredRows

MOST_HEADER = 100 << 20
"""Bytes of a block's header that is read: the limit of safetensors."""

DENSE = 8
"""If at least one in so many rows is wanted, all rows between them are read, in one go."""


class DirectoryRows(StoredRows):
    """The rows `(n, d)` of one layer in a directory; `load()` reads them into one torch tensor."""

    def __init__(self, directory: Path, blocks: tuple[Block, ...], layer: Layer) -> None:
        self.directory, self.layer = directory, layer
        self.shape = (sum(block.rows for block in blocks), layer.width)
        self.dtype = getattr(torch, layer.dtype)
        self.blocks = blocks
        self.checked: set[int] = set()
        """Numbers of the blocks whose rows are as they were written."""
        self.block_ends = list(accumulate(block.rows for block in blocks))

    def __repr__(self) -> str:
        return f"DirectoryRows({self.layer.key!r}, {self.shape}, {self.layer.dtype})"

    @contextmanager
    def reader(self) -> Iterator[_Reader]:
        """Check what is read; a block that is torn or changed is a ValueError."""
        reader = _Reader(self)
        try:
            yield reader
        finally:
            reader.close()

    def gather(self, index: np.ndarray) -> Tensor:
        """Read in the order of the disk: row by row, or by ranges where many are wanted."""
        out = self.buffer(len(index))
        view = raw_bytes(out)
        order = np.argsort(index, kind="stable")
        wanted = index[order]
        window = max(CHUNK // self.row_bytes, 1)
        dense, lo = None, 0
        with self.reader() as read:
            while lo < len(wanted):
                start = int(wanted[lo])
                number, first, end = self.block_of(start)
                hi = int(np.searchsorted(wanted, min(start + window, end)))
                stop = int(wanted[hi - 1]) + 1
                rows, to = wanted[lo:hi], order[lo:hi]
                read.verify(number)
                if DENSE * (hi - lo) >= stop - start:
                    dense = self.buffer(window) if dense is None else dense
                    span = read(start, stop, dense)
                    out[torch.from_numpy(to)] = span[torch.from_numpy(rows - start)]
                else:
                    size = self.row_bytes
                    for row, place in zip(rows.tolist(), to.tolist(), strict=True):
                        part = view[place * size : (place + 1) * size]
                        read.fill(number, (row - first) * size, part)
                lo = hi
        return out

    def block_of(self, row: int) -> tuple[int, int, int]:
        """The number of a row's block, the block's first row and the one after its last."""
        number = bisect_right(self.block_ends, row)
        return number, self.block_ends[number] - self.blocks[number].rows, self.block_ends[number]

    def path(self, number: int) -> Path:
        """The file of a block."""
        return self.directory / block_name(number)

    def torn(self, number: int, why: str) -> ValueError:
        """The error for a block that is not what was written."""
        return ValueError(
            f"{os.fspath(self.path(number))!r}: torn or changed since it was written: {why}; "
            "delete the file and call extract again, which redoes it"
        )


class _Reader:
    """Reads a layer's rows from its blocks, and checks the blocks that it reads from end to end.

    A file stays open until another one is read: the operating system then sees that it is read in
    order, and reads ahead.
    """

    def __init__(self, stored: DirectoryRows) -> None:
        self.stored = stored
        self.number = -1
        self.file: Any = None
        self.offset = 0  # of the layer's first byte in the file
        self.done, self.crc = 0, 0  # bytes read in order from the layer's first on; their CRC-32

    def __call__(self, start: int, stop: int, buffer: Tensor) -> Tensor:
        """Rows `start` to `stop`, in the buffer."""
        at, size = start, self.stored.row_bytes
        while at < stop:
            number, first, end = self.stored.block_of(at)
            upto = min(stop, end)
            view = raw_bytes(buffer[at - start : upto - start])
            self.fill(number, (at - first) * size, view)
            self._check((at - first) * size, view)
            at = upto
        return buffer[: stop - start]

    def verify(self, number: int) -> None:
        """Read a block from end to end, to check it, unless that has been done."""
        if number not in self.stored.checked:
            self.close()
            stop = self.stored.block_ends[number]
            start = stop - self.stored.blocks[number].rows
            step = max(CHUNK // self.stored.row_bytes, 1)
            buffer = self.stored.buffer(min(step, stop - start))
            for at in range(start, stop, step):
                self(at, min(at + step, stop), buffer)

    def fill(self, number: int, position: int, view: memoryview) -> None:
        """Fill the view with a block's bytes of the layer from `position` on, unchecked."""
        if number != self.number:
            self._open(number)
        self.file.seek(self.offset + position)
        while view:
            count = self.file.readinto(view)
            if not count:
                raise self.stored.torn(number, "it ends too early")
            view = view[count:]

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
        self.number, self.file, self.done, self.crc = -1, None, 0, 0

    def _open(self, number: int) -> None:
        self.close()
        path, block = self.stored.path(number), self.stored.blocks[number]
        try:
            self.file = open_regular(path)
        except OSError as error:
            raise ValueError(
                f"{os.fspath(path)!r}: a block of activations is gone: {error}"
            ) from None
        try:
            length = int.from_bytes(self.file.read(8), "little")
            if length > min(block.bytes, MOST_HEADER):
                raise ValueError(f"it would have {length} bytes")
            header = json.loads(self.file.read(length))
            self.offset = 8 + length + self.stored.layer.offset(header, block.rows)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise self.stored.torn(number, f"its header cannot be read: {error}") from None
        self.number = number

    def _check(self, position: int, view: memoryview) -> None:
        """Continue the checksum of a block that is read in order; compare it at the block's end."""
        number = self.number
        if number in self.stored.checked or position != self.done:
            return
        self.crc, self.done = zlib.crc32(view, self.crc), self.done + len(view)
        block, key = self.stored.blocks[number], self.stored.layer.key
        if self.done == block.rows * self.stored.row_bytes:
            if self.crc != block.crc32[key]:
                raise self.stored.torn(number, f"the checksum of {key!r} is another one")
            self.stored.checked.add(number)


def open_activations(
    directory: str | os.PathLike[str], *, partial: bool = False
) -> tuple[Activations, Any]:
    """Open activations on disk, and their labels: what `extract` wrote, or files of others.

    Only the labels are read here: `fit_probes` loads a layer that fits in memory and streams one
    that does not. No pickle is read.

    Args:
        directory: where `extract(..., out=directory)` wrote; or a file `.npy`, `.npz`,
            `.safetensors`, `.pt`, `.pth`, `.h5` or `.hdf5`, or a folder of such. Each array in them
            is a layer; one called "labels" has the labels, "labels/tense" those of a concept. The
            rows of all are mapped from the disk, but those of `.npz` and of chunked HDF5 are read.
        partial: accept an interrupted extraction too, with the rows that it had written.

    Returns:
        The rows `(n, d)` by layer, in the order in which the network computes them, each with
        `shape`, `dtype` and `load()`, with their examples and positions if rows are tokens; and
        the labels `(n,)`, a dictionary of them if they are of concepts, or None if there are none.

    Raises:
        FileNotFoundError: nothing that can be read.
        ValueError: a damaged directory, one of something else, or an interrupted extraction; a file
            that cannot be read or holds pickled objects, an array without two axes, or of another
            number of rows.
        ImportError: an HDF5 file, and h5py is not installed.
    """
    directory = check_path("directory", directory)
    check_bool("partial", partial)
    if not (directory / MANIFEST).exists() and is_readable(directory):
        return read_files(directory)
    manifest = Manifest.read(directory)
    if not manifest.complete and not partial:
        raise ValueError(
            f"{os.fspath(directory)!r}: the extraction was interrupted after {manifest.rows} rows; "
            "call extract again to finish it, or pass partial=True for those rows"
        )
    blocks = manifest.blocks
    whole = manifest.check_sizes(directory)
    if whole < len(blocks):
        raise ValueError(
            f"{os.fspath(directory / block_name(whole))!r}: expected {blocks[whole].bytes} bytes, "
            "found a torn or missing block; call extract again to redo it"
        )
    if not blocks:
        raise ValueError(f"{os.fspath(directory)!r}: no row was written before the interruption")
    rows: dict[str, DirectoryRows] = {}
    columns: dict[str, Tensor] = {}
    for tensor in manifest.tensors:
        stored = DirectoryRows(directory, blocks, tensor)
        if not isinstance(tensor, Column):
            rows.update(dict.fromkeys(tensor.names, stored))
            continue
        with stored.reader() as read:
            for number in range(len(blocks)):  # in a small buffer: nothing false takes memory
                read.verify(number)
        columns[tensor.key] = stored.load()[:, 0]
    tokens = (columns[key].numpy() for key in (EXAMPLES, POSITIONS) if key in columns)
    return Activations(rows, *tokens), labels_of(columns)
