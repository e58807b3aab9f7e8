"""Choose where rows are kept while they are multiplied: the device, the host or the disk."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from convexprobe.activations.source import Rows, Source
from convexprobe.activations.stored import HostRows, StoredRows
from convexprobe.activations.stream import HELD, SAMPLES, Stream
from convexprobe.arrays.backend import Array, to_torch
from convexprobe.arrays.ranks import Communicator

SHARE = 0.5
"""The share of the free memory that a layer's rows may take when no limit is given."""


@dataclass(frozen=True)
class Neighbours:
    """How many ranks, this one among them, divide the free memory of the host and of a device.

    Attributes:
        host: those on this host, wherever they work.
        device: those that work on the same device of it.
    """

    host: int = 1
    device: int = 1

    @classmethod
    def of(
        cls, layers: Iterable[Array | StoredRows], device: str | None, communicator: Communicator
    ) -> Neighbours:
        """Those that place layers where this rank places its own. A message: every rank calls this.

        Args:
            layers: the rows of this rank.
            device: as for `place`.
            communicator: the ranks.
        """
        if communicator.process_group is None:
            return cls()
        with communicator.raise_together():
            where = sorted({identity(target_of(rows, device)) for rows in layers})
            texts = communicator.texts(json.dumps([socket.gethostname(), where]))
        every = [json.loads(text) for text in texts]
        host, own = every[communicator.rank]
        here = [others for name, others in every if name == host]
        return cls(len(here), sum(not set(own).isdisjoint(others) for others in here))


ALONE_HERE = Neighbours()
"""No other rank shares this one's memory."""


def target_of(rows: Array | StoredRows, device: str | None) -> torch.device:
    """Where rows will be multiplied; the CPU for those on disk, if no device is named."""
    if device is None and isinstance(rows, torch.Tensor):
        return rows.device
    target = torch.device("cpu" if device is None else device)
    # with its number
    return target if target.type == "cpu" else torch.empty(0, device=target).device


def identity(device: torch.device) -> str:
    """A name of the device that is the same in all processes of a host."""
    if device.type == "cpu":
        return "cpu"
    module = torch.get_device_module(device)
    known = getattr(module, "get_device_properties", lambda _: None)(device)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # what a process's numbers count
    return str(getattr(known, "uuid", f"{device} of {visible}"))


def place(
    rows: Array | StoredRows,
    device: str | None,
    limit: float | None,
    neighbours: Neighbours = ALONE_HERE,
) -> Source:
    """The rows in the fastest memory that has room: the device's, else the host's, else the disk.

    Args:
        rows: one layer, `(n, d)`.
        device: where to multiply. None is where the array is, and the CPU for rows on disk.
        limit: bytes that the rows may take, on the device and on the host alike, and the logits
            that a solve keeps of them where they are multiplied; None is half of what is free,
            divided among the neighbours. An array that is in host memory already stays there.
        neighbours: the ranks that share the memory.
    """
    if device is None and not isinstance(rows, StoredRows):
        size = 0 if limit is None else nbytes(rows)
        return _with_room(Rows(rows), logit_room("device", size, limit))
    target = target_of(rows, device)
    store = rows if isinstance(rows, StoredRows) else HostRows(to_torch(rows))
    if isinstance(store, HostRows) and store.tensor.device == target:
        return _with_room(Rows(store.tensor), logit_room("device", store.nbytes, limit))
    stored = isinstance(rows, StoredRows)
    tier, allowed = choose_tier(store.nbytes, target, limit, disk=stored, neighbours=neighbours)
    room = logit_room(tier, store.nbytes, allowed)
    if tier == "device":
        return _with_room(Rows(store.load(target)), room)
    if tier == "host" and isinstance(rows, StoredRows):
        store = HostRows(store.load(pinned=target.type != "cpu"))
    return _with_room(Stream(store, target, allowed), room)


def _with_room(source: Source, room: float) -> Source:
    source.room = room
    return source


def nbytes(rows: Array | StoredRows) -> int:
    """Bytes of a layer's rows."""
    item = getattr(rows.dtype, "itemsize", 8)  # the array standard has no such attribute
    return int(rows.shape[0]) * int(rows.shape[1]) * int(item)


def logit_room(tier: str, size: int, limit: float | None) -> float:
    """Bytes that logits of rows of `size` bytes may take beside them, under a limit for both.

    Rows that are streamed leave the memory to the logits and to the samples that are gathered.
    """
    if limit is None:
        return float("inf")
    return max(limit - size, 0.0) if tier == "device" else (1.0 - HELD * SAMPLES) * limit


def reference(rows: Array | StoredRows, device: str | None) -> Array:
    """The `reference` of the source that `place` will return, without reading or moving rows."""
    return place(rows if isinstance(rows, StoredRows) else rows[:0, :], device, 0.0).reference


def choose_tier(
    size: int,
    target: torch.device,
    limit: float | None,
    *,
    disk: bool,
    neighbours: Neighbours = ALONE_HERE,
) -> tuple[str, float]:
    """Choose "device" (where rows are multiplied), "host" or "disk" for so many bytes of rows.

    Returns:
        The tier, and the bytes that rows may take on the device.
    """
    shared = neighbours.host if target.type == "cpu" else neighbours.device
    on_device, on_host = (
        free_memory(where) * SHARE / ranks if limit is None else limit
        for where, ranks in ((target, shared), (torch.device("cpu"), neighbours.host))
    )
    if size <= on_device:
        return "device", on_device
    if not disk or (target.type != "cpu" and size <= on_host):
        return "host", on_device
    return "disk", on_device


def free_memory(device: torch.device) -> float:
    """Bytes that can be allocated on a device.

    On the host, and on a device that shares its memory, that is the least of what the machine and
    the process's control group (a container, a batch system) have left.
    """
    known = getattr(torch.get_device_module(device), "mem_get_info", None)
    if known is not None:
        return float(known(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024.0 * next(int(s.split()[1]) for s in lines if s.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: all the memory
        free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    group = Path("/sys/fs/cgroup")
    try:
        most = float((group / "memory.max").read_text())  # "max" where there is no limit
        free = min(free, most - float((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(free, 0.0)
