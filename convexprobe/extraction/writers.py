"""Where extracted rows go: memory, or a directory, block by block, that survives a kill."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convexprobe._files import remove_leftovers
from convexprobe._hashing import digest
from convexprobe.activations.directory import open_activations
from convexprobe.activations.manifest import LABELS, MANIFEST, Block, Layer, Manifest, block_name
from convexprobe.extraction.batch import Batch
from convexprobe.extraction.layer_names import Point

BLOCK = 64 << 20
"""Bytes, of all layers together, after which a block is written; a block has whole batches."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Names = Mapping[Point, list[str]]
"""Every name of each point, in the order of computation."""


class Writer(ABC):
    """Takes the rows of one batch after another."""

    def skips(self, batch: Batch) -> bool:
        """Whether the batch's rows are there already."""
        return False

    @abstractmethod
    def add(self, point: Point, rows: Tensor) -> None:
        """The rows of one point for the batch in flight; they may change afterwards."""

    @abstractmethod
    def end_batch(self, batch: Batch, names: Names) -> None:
        """All points have been added."""

    @abstractmethod
    def finish(self, names: Names) -> tuple[dict[str, Any], Tensor | None]:
        """Everything, by name, and the labels; nothing is kept here."""


class MemoryWriter(Writer):
    """One tensor a point, allocated once where the number of rows is known beforehand."""

    def __init__(self, device: torch.device, expected: int) -> None:
        self.device, self.expected, self.rows = device, expected, 0
        # by point: a block of the expected length, and the batches that it cannot hold
        self.blocks: dict[Point, list[Tensor]] = {}
        self.labels: list[Tensor] = []

    def add(self, point: Point, rows: Tensor) -> None:
        """Copied to its place."""
        if point not in self.blocks:
            shape = max(len(rows), self.expected), rows.shape[1]
            self.blocks[point] = [torch.empty(shape, dtype=rows.dtype, device=self.device)]
        block = self.blocks[point][0]
        if (end := self.rows + len(rows)) <= len(block):
            block[self.rows : end] = rows
        else:
            self.blocks[point].append(rows.to(self.device, copy=True))

    def end_batch(self, batch: Batch, names: Names) -> None:
        """Labels are copied too: the loader may fill the same tensor again."""
        self.rows += batch.rows
        if batch.labels is not None:
            self.labels.append(batch.labels.to(self.device, copy=True))

    def finish(self, names: Names) -> tuple[dict[str, Any], Tensor | None]:
        """In storages of exactly their size."""
        found: dict[str, Tensor] = {}
        for point in list(self.blocks):
            block, *more = self.blocks.pop(point)
            used = self.rows - sum(map(len, more))
            whole = torch.cat([block[:used], *more]) if more or used < len(block) else block
            found.update(dict.fromkeys(names[point], whole))
        return found, torch.cat(self.labels) if self.labels else None


class DirectoryWriter(Writer):
    """Row blocks in a directory; see `activations.manifest` for the format.

    Memory: a block and a batch, three times over while it is written. What an interrupted
    extraction has written is not computed again: its batches are read from the loader and compared
    by checksum, but do not run through the model.

    Args:
        directory: made if it is not there.
        model: the network, for its hash.
        request: what was asked for, as JSON holds it.

    Raises:
        ValueError: the directory has the activations of another extraction, or other files.
    """

    def __init__(self, directory: Path, model: nn.Module, request: dict[str, Any]) -> None:
        self.directory = directory
        weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.manifest = Manifest(digest(weights), request)
        directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(directory)
        if (directory / MANIFEST).exists():
            self._resume()
        elif any(directory.iterdir()):
            raise ValueError(
                f"{os.fspath(directory)!r}: expected a directory that is empty or has activations, "
                "found other files"
            )
        else:
            self.manifest.write(directory)
        self.done = deque(self.manifest.blocks)
        self._clear()

    def _resume(self) -> None:
        """Keep what is whole of an earlier extraction of the same activations."""
        old = Manifest.read(self.directory)
        for what, ours, theirs in (
            ("model", self.manifest.model, old.model),
            *((key, value, old.request.get(key)) for key, value in self.manifest.request.items()),
        ):
            if ours != theirs:
                raise ValueError(
                    f"{os.fspath(self.directory)!r} has the activations of another {what} "
                    f"({theirs!r}, asked for {ours!r}); choose another directory, or delete it"
                )
        whole = old.check_sizes(self.directory)
        self.manifest = (
            old
            if whole == len(old.blocks)
            else replace(old, blocks=old.blocks[:whole], complete=False)
        )

    def _clear(self) -> None:
        self.pending: dict[Point, list[Tensor]] = {}
        self.labels: list[Tensor] = []
        self.rows = self.batches = self.inputs = self.bytes = 0

    def skips(self, batch: Batch) -> bool:
        """Whether a block on disk has it; at the block's end the data are compared.

        Raises:
            ValueError: the loader gives other data than it did.
        """
        if not self.done:
            return False
        self.batches, self.inputs = self.batches + 1, batch.checksum(self.inputs)
        block = self.done[0]
        if self.batches == block.batches:
            if self.inputs != block.inputs:
                name = block_name(len(self.manifest.blocks) - len(self.done))
                raise ValueError(
                    f"batch {batch.index}: expected the inputs and labels that "
                    f"{os.fspath(self.directory / name)!r} was made of, found others; to "
                    "resume, the loader has to give the same batches (no shuffling)"
                )
            self.done.popleft()
            self._clear()
        return True

    def add(self, point: Point, rows: Tensor) -> None:
        """Copied to host memory."""
        self.pending.setdefault(point, []).append(rows.to("cpu", copy=True))
        self.bytes += rows.nbytes

    def end_batch(self, batch: Batch, names: Names) -> None:
        """A block is written when it is large enough."""
        self.rows, self.batches = self.rows + batch.rows, self.batches + 1
        self.inputs = batch.checksum(self.inputs)
        if batch.labels is not None:
            self.labels.append(batch.labels.to("cpu", copy=True))
        if self.bytes >= BLOCK:
            self._write(names)

    def finish(self, names: Names) -> tuple[dict[str, Any], Tensor | None]:
        """Write the rest, say that it is complete, and open it."""
        if self.done:
            raise ValueError(
                f"loader: expected the {self.manifest.rows} rows that "
                f"{os.fspath(self.directory)!r} has, found fewer"
            )
        if self.rows:
            self._write(names)
        if not self.manifest.complete:
            self.manifest = replace(self.manifest, complete=True)
            self._to_disk(lambda: self.manifest.write(self.directory))
        return open_activations(self.directory)

    def _write(self, names: Names) -> None:
        """One block, and the manifest that lists it."""
        old = self.manifest
        layers, tensors = [], {}
        for point in list(self.pending):
            rows = torch.cat(self.pending.pop(point))
            layer = Layer.of(names[point], rows)
            layers.append(layer)
            tensors[layer.key] = rows
        if self.labels:
            tensors[LABELS] = torch.cat(self.labels)
        labels = Layer.of((), tensors[LABELS]).dtype if self.labels else None
        if old.blocks and (tuple(layers), labels) != (old.layers, old.labels):
            raise ValueError(
                f"{os.fspath(self.directory)!r}: expected the layers and labels of the blocks "
                f"there, {[layer.names[0] for layer in old.layers]}, found others; delete it"
            )

        def to_disk() -> None:
            block = Block.write(self.directory, len(old.blocks), tensors, self.batches, self.inputs)
            blocks = (*old.blocks, block)
            new = replace(old, layers=tuple(layers), labels=labels, blocks=blocks, complete=False)
            new.write(self.directory)
            self.manifest = new

        self._to_disk(to_disk)
        self._clear()

    def _to_disk(self, write: Any) -> None:
        """Write; say plainly that the disk is full."""
        try:
            write()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise OSError(
                error.errno,
                f"the disk is full after {self.manifest.rows} rows of each layer, which are whole "
                "and can be read (open_activations(..., partial=True)); make room, and the same "
                "call goes on from there",
                os.fspath(self.directory),
            ) from error
