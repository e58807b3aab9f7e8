"""Choose where rows are kept while they are multiplied: the device, the host or the disk."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from convexprobe.activations.source import Rows, Source
from convexprobe.activations.stored import HostRows, StoredRows
from convexprobe.activations.stream import HELD, SAMPLES, Stream
from convexprobe.arrays.backend import Array, to_torch

SHARE = 0.5
"""The share of the free memory that a layer's rows may take when no limit is given."""


def place(rows: Array | StoredRows, device: str | None, limit: float | None) -> Source:
    """The rows in the fastest memory that has room: the device's, else the host's, else the disk.

    Args:
        rows: one layer, `(n, d)`.
        device: where to multiply. None is where the array is, and the CPU for rows on disk.
        limit: bytes that the rows may take, on the device and on the host alike, and the logits
            that a solve keeps of them where they are multiplied; None is half of what is free. An
            array that is in host memory already stays there.
    """
    if device is None and not isinstance(rows, StoredRows):
        size = 0 if limit is None else nbytes(rows)
        return _with_room(Rows(rows), logit_room("device", size, limit))
    target = torch.device("cpu" if device is None else device)
    store = rows if isinstance(rows, StoredRows) else HostRows(to_torch(rows))
    if target.type != "cpu":
        target = torch.empty(0, device=target).device  # with its number
    if isinstance(store, HostRows) and store.tensor.device == target:
        return _with_room(Rows(store.tensor), logit_room("device", store.nbytes, limit))
    tier, allowed = choose_tier(store.nbytes, target, limit, disk=isinstance(rows, StoredRows))
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
    size: int, target: torch.device, limit: float | None, *, disk: bool
) -> tuple[str, float]:
    """Choose "device" (where rows are multiplied), "host" or "disk" for so many bytes of rows.

    Returns:
        The tier, and the bytes that rows may take on the device.
    """
    on_device, on_host = (
        free_memory(where) * SHARE if limit is None else limit
        for where in (target, torch.device("cpu"))
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
