"""Where extracted rows go: to memory, or block by block to a directory, where a kill loses few."""

from __future__ import annotations

import errno
import os
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convexprobe._arguments import shown
from convexprobe._files import is_bookkeeping, remove_leftovers
from convexprobe._locks import DirectoryLock
from convexprobe.activations.directory import open_activations
from convexprobe.activations.layers import Activations
from convexprobe.activations.manifest import (
    EXAMPLES,
    MANIFEST,
    POSITIONS,
    Block,
    Layer,
    Manifest,
    StoredLabels,
    block_name,
    dtype_name,
    labels_of,
)
from convexprobe.extraction.batch import Batch
from convexprobe.extraction.identity import describe_function, describe_model
from convexprobe.extraction.masks import MaskChoice
from convexprobe.extraction.points import Point
from convexprobe.extraction.pooling import PoolChoice

BLOCK = 64 << 20
"""The usual size of a block, in bytes of all layers together."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_WORDS = {
    "weights": "model, with other weights",
    "modules": "model, with other modules, attributes or code",
    "points": "choice of layers",
    "dtype": "dtype",
    "pool": "pool",
    "mask": "mask",
    "autocast": "autocast region",
    "batch_axis": "batch axis",
}
"""What a directory may have been extracted with, in words."""

Names = Mapping[Point, list[str]]
"""All names of each point, in the order of computation."""

Columns = Mapping[str, Tensor]
"""What is known of each row beside its activations, `(r,)` by the names of `manifest`."""


class Writer(ABC):
    """Takes the rows of one batch after another."""

    def skips(self, batch: Batch) -> bool:
        """Whether the batch's rows are stored already."""
        return False

    @abstractmethod
    def add(self, point: Point, rows: Tensor, *, owned: bool = False) -> None:
        """Copy the current batch's rows of one point, or keep them if nobody else will use them."""

    @abstractmethod
    def drop(self, point: Point) -> None:
        """Forget a point, of which rows of the current batch alone have been added."""

    @abstractmethod
    def end_batch(self, batch: Batch, columns: Columns, names: Names) -> None:
        """Copy the columns of the current batch, whose points have all been added."""

    @abstractmethod
    def finish(self, names: Names) -> tuple[Activations, StoredLabels]:
        """All rows by name, and the labels; the writer keeps nothing."""

    def close(self) -> None:  # noqa: B027 (most have nothing to do)
        """Let others write where this one did; called at the end, also after an error."""


class MemoryWriter(Writer):
    """Keeps one tensor a point, allocated once if the number of `expected` rows is right."""

    def __init__(self, device: torch.device, expected: int) -> None:
        self.device, self.expected, self.rows = device, expected, 0
        # by point: a block of the expected length, then the batches that did not fit into it
        self.blocks: dict[Point, list[Tensor]] = {}
        self.columns: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, point: Point, rows: Tensor, *, owned: bool = False) -> None:
        if point not in self.blocks:
            shape = max(len(rows), self.expected), rows.shape[1]
            self.blocks[point] = [torch.empty(shape, dtype=rows.dtype, device=self.device)]
        block = self.blocks[point][0]
        if (end := self.rows + len(rows)) <= len(block):
            block[self.rows : end] = rows
        else:
            self.blocks[point].append(rows.to(self.device, copy=not owned))

    def drop(self, point: Point) -> None:
        del self.blocks[point]

    def end_batch(self, batch: Batch, columns: Columns, names: Names) -> None:
        self.rows += len(columns[EXAMPLES]) if EXAMPLES in columns else batch.rows
        for key, values in columns.items():
            self.columns[key].append(values.to(self.device, copy=True))

    def finish(self, names: Names) -> tuple[Activations, StoredLabels]:
        """Each tensor has a storage of exactly its size."""
        layers: dict[str, Tensor] = {}
        for point in list(self.blocks):
            block, *more = self.blocks.pop(point)
            used = self.rows - sum(map(len, more))
            whole = torch.cat([block[:used], *more]) if more or used < len(block) else block
            layers.update(dict.fromkeys(names[point], whole))
        columns = {key: torch.cat(parts) for key, parts in self.columns.items()}
        tokens = (columns[key].cpu().numpy() for key in (EXAMPLES, POSITIONS) if key in columns)
        return Activations(layers, *tokens), labels_of(columns)


class DirectoryWriter(Writer):
    """Writes row blocks to a directory; `activations.manifest` has the format.

    After an interruption, the batches of the blocks that are complete do not run through the model
    again: they are read from the loader and compared by checksum. Memory: a block and a batch, and
    three times as much while a block is written.

    Args:
        directory: is made if it does not exist.
        model: the network, which is identified by `extraction.identity`.
        request: what was asked for beside the pool; JSON has to be able to hold it.
        pool, mask: as `extract` takes them.
        block: bytes, of all layers together, after which a block is written; a block has whole
            batches.

    Raises:
        ValueError: the directory has the activations of another extraction, or other files.
        RuntimeError: somebody else writes there.
    """

    def __init__(
        self,
        directory: Path,
        model: nn.Module,
        request: dict[str, Any],
        pool: PoolChoice,
        mask: MaskChoice | None,
        block: int = BLOCK,
    ) -> None:
        self.directory, self.block, self.warned = directory, block, False
        identity, (pools, unknown) = describe_model(model), _described(pool)
        tokens, more = describe_function(mask) if callable(mask) else (mask, ())
        request = {
            **request,
            "modules": identity.modules,
            "pool": pools,
            "mask": tokens,
            "unknown": [*identity.unknown, *unknown, *more],
        }
        self.manifest = Manifest(identity.weights, request)
        directory.mkdir(parents=True, exist_ok=True)
        self.lock = DirectoryLock(directory, "activations")
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self.done = deque(self.manifest.blocks)
        self._clear()

    def close(self) -> None:
        self.lock.close()

    def _open(self) -> None:
        """Start, or go on where an earlier extraction has written blocks."""
        directory, unknown = self.directory, self.manifest.request["unknown"]
        remove_leftovers(directory)
        if (directory / MANIFEST).exists():
            old = Manifest.read(directory)
            if old.blocks:
                self._resume(old)
                return
        elif not all(map(is_bookkeeping, directory.iterdir())):
            raise ValueError(
                f"{os.fspath(directory)!r}: expected a directory that is empty or has activations, "
                "found other files"
            )
        self.manifest.write(directory)
        if unknown:
            warnings.warn(
                f"{os.fspath(directory)!r}: another call of extract will not continue or reuse "
                f"these activations, because it cannot tell what they are of: {unknown[0]}",
                UserWarning,
                stacklevel=5,
            )

    def _resume(self, old: Manifest) -> None:
        """Take over the complete blocks of an earlier extraction of the same activations."""
        ours, theirs = ({"weights": m.model, **m.request} for m in (self.manifest, old))
        remedy = "choose another directory, or delete it"
        for what, words in _WORDS.items():
            if ours[what] != theirs.get(what):
                raise ValueError(
                    f"{os.fspath(self.directory)!r} has the activations of another {words} "
                    f"({shown(theirs.get(what))}, asked for {shown(ours[what])}); {remedy}"
                )
        if unknown := ours["unknown"] or theirs.get("unknown", ["the manifest does not say"]):
            raise ValueError(
                f"{os.fspath(self.directory)!r} has activations, and it cannot be told whether "
                f"they are those asked for: {str(unknown).strip('[]')}; {remedy}"
            )
        whole = old.check_sizes(self.directory)
        complete = old.complete and whole == len(old.blocks)
        self.manifest = replace(old, blocks=old.blocks[:whole], complete=complete)

    def _clear(self) -> None:
        self.pending: dict[Point, list[Tensor]] = {}
        self.columns: dict[str, list[Tensor]] = defaultdict(list)
        self.rows = self.batches = self.inputs = self.bytes = 0

    def skips(self, batch: Batch) -> bool:
        """Whether a block on disk has the batch's rows. At the block's end the data are compared.

        Raises:
            ValueError: the loader gives other data than those the block was made of.
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

    def add(self, point: Point, rows: Tensor, *, owned: bool = False) -> None:
        self.pending.setdefault(point, []).append(rows.to("cpu", copy=not owned))
        self.bytes += rows.nbytes

    def drop(self, point: Point) -> None:
        self.bytes -= sum(rows.nbytes for rows in self.pending.pop(point))

    def end_batch(self, batch: Batch, columns: Columns, names: Names) -> None:
        self.rows += len(columns[EXAMPLES]) if EXAMPLES in columns else batch.rows
        self.batches, self.inputs = self.batches + 1, batch.checksum(self.inputs)
        for key, values in columns.items():
            self.columns[key].append(values.to("cpu", copy=True))
        if self.bytes >= self.block:
            self._write(names)

    def finish(self, names: Names) -> tuple[Activations, StoredLabels]:
        """Write what is left, mark the directory as complete and open it."""
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
        """Write one block, then the manifest that lists it."""
        old = self.manifest
        layers, tensors = [], {}
        for point in list(self.pending):
            rows = torch.cat(self.pending.pop(point))
            layer = Layer.of(names[point], rows)
            layers.append(layer)
            tensors[layer.key] = rows
        tensors |= {key: torch.cat(parts) for key, parts in self.columns.items()}
        columns = {key: dtype_name(tensors[key]) for key in self.columns}
        if old.blocks and (tuple(layers), columns) != (old.layers, old.columns):
            raise ValueError(
                f"{os.fspath(self.directory)!r}: expected the layers and labels of the blocks "
                f"there, {[layer.names[0] for layer in old.layers]}, found others; delete it"
            )
        self._warn_if_not_finite(layers, tensors)

        def to_disk() -> None:
            block = Block.write(self.directory, len(old.blocks), tensors, self.batches, self.inputs)
            blocks = (*old.blocks, block)
            new = replace(old, layers=tuple(layers), columns=columns, blocks=blocks, complete=False)
            new.write(self.directory)
            self.manifest = new

        self._to_disk(to_disk)
        self._clear()

    def _warn_if_not_finite(self, layers: list[Layer], tensors: dict[str, Tensor]) -> None:
        """Say once, long before a fit refuses them, that there are rows that are not finite."""
        for layer in layers if not self.warned else ():
            rows = tensors[layer.key]
            finite = (rows.half() if rows.itemsize == 1 else rows).isfinite().all(1)
            if not self.warned and not finite.all():
                row = self.manifest.rows + int((~finite).nonzero()[0, 0])
                warnings.warn(
                    f"layer {layer.names[0]!r}: its activations are not finite, first in row {row}",
                    UserWarning,
                    stacklevel=6,
                )
                self.warned = True

    def _to_disk(self, write: Callable[[], None]) -> None:
        """Call `write`, and say plainly if the disk is full."""
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


def _described(pool: PoolChoice) -> tuple[list[list[str]], list[str]]:
    """Patterns and identities of pools, in the order in which they are tried; what is unknown."""
    pools: list[list[str]] = []
    unknown: list[str] = []
    for pattern, choice in (pool if isinstance(pool, Mapping) else {"**": pool}).items():
        text, more = (choice, ()) if isinstance(choice, str) else describe_function(choice)
        pools.append([pattern, text])
        unknown += more
    return pools, unknown
