"""Several processes: sums over ranks, and the parts of a list for jobs that never talk.

The rows of a matrix may be distributed over the ranks of a `torch.distributed` process group: rank
0 holds the first of them, rank 1 the next, and so on. Ranks may hold different numbers of rows, or
none. Solvers read the rows only through sums over them, so the only message is a sum over ranks.
Everything else that has to agree (labels, class lists, rank 0's clock, an error) is sent as a sum
to which the other ranks add zeros. Sums are made in float64 and have the same bits on every rank.

Each rank computes `w`, the certificate and every decision itself, from those sums. Ranks whose
arithmetic differs in its bits would differ at some decision and then wait for each other, so
`fit_probes` refuses them at once (`arrays.linalg.arithmetic`). Random draws are over the row
numbers of all ranks, from one stream, and each rank keeps its own rows of a draw. So the result is
that of one process, up to rounding, however the rows are distributed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from convexprobe._arguments import shown
from convexprobe.arrays.backend import Array, from_torch, namespace, to_torch

S = TypeVar("S", bound=Sequence[Any])

_KINDS = {kind.__name__: kind for kind in (TypeError, ValueError, OverflowError, OSError)}


class LostRankError(RuntimeError):
    """Another rank is gone or silent: nothing that this one does can go on."""


@dataclass(frozen=True)
class Communicator:
    """The ranks over which rows are distributed; by default this process alone.

    Attributes:
        process_group: a `torch.distributed` process group that this process is in, or None.
    """

    process_group: Any = None

    @classmethod
    def of(cls, process_group: Any) -> Communicator:
        """None for this process alone, "world" for all ranks, or a process group.

        Raises:
            ValueError: no process group is initialised, or this process is not in the one given.
        """
        if process_group is None:
            return ALONE
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                'process_group: call torch.distributed.init_process_group("nccl") or ("gloo") first'
            )
        if isinstance(process_group, str) and process_group == "world":
            process_group = dist.group.WORLD
        if not isinstance(process_group, dist.ProcessGroup) or dist.get_rank(process_group) < 0:
            raise ValueError(
                'process_group: expected None, "world" or a process group with this process, '
                f"found {process_group}"
            )
        return cls(process_group)

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return 0 if self.process_group is None else dist.get_rank(self.process_group)

    @property
    def size(self) -> int:
        """The number of processes."""
        return 1 if self.process_group is None else dist.get_world_size(self.process_group)

    @property
    def min_rows(self) -> int:
        """The fewest rows that this process may have: none where there are other ranks."""
        return 1 if self.process_group is None else 0

    def all_reduce(self, *arrays: Array) -> tuple[Array, ...]:
        """Sum each array over the ranks; it keeps its library, device and dtype. One message.

        Raises:
            LostRankError: a rank is gone, or did not answer within the group's timeout.
        """
        if self.process_group is None:
            return arrays
        parts = [to_torch(array) for array in arrays]
        device = parts[0].device
        if dist.get_backend(self.process_group) == "nccl":
            device = torch.device("cuda", torch.cuda.current_device())
        flat = torch.cat([part.reshape(-1).to(device, torch.float64) for part in parts])
        try:
            dist.all_reduce(flat, group=self.process_group)
        except RuntimeError as error:
            raise LostRankError(
                f"rank {self.rank} of {self.size}: another rank is gone or did not answer within "
                f"the group's timeout; see its own error, and start the job again ({error})"
            ) from error
        sums = torch.split(flat, [part.numel() for part in parts])
        return tuple(from_torch(s, array) for s, array in zip(sums, arrays, strict=True))

    def counts(self, rows: int) -> np.ndarray:
        """The rows of every rank, `(size,)`."""
        counts = np.zeros(self.size)
        counts[self.rank] = rows
        return self.all_reduce(counts)[0].astype(np.int64)

    def span(self, rows: int) -> tuple[slice, int]:
        """This rank's slice of the rows of all ranks, and the number of those."""
        ends = np.cumsum(self.counts(rows))
        return slice(int(ends[self.rank]) - rows, int(ends[self.rank])), int(ends[-1])

    def all_gather(self, array: Array) -> Array:
        """The rows `(r, ...)` of all ranks in their order; exact for what float64 can hold."""
        if self.process_group is None:
            return array
        own, rows = self.span(array.shape[0])
        whole = namespace(array).zeros(
            (rows, *array.shape[1:]), dtype=array.dtype, device=array.device
        )
        whole[own, ...] = array
        return self.all_reduce(whole)[0]

    def texts(self, text: str) -> list[str]:
        """The texts of all ranks."""
        if self.process_group is None:
            return [text]
        own = np.frombuffer(text.encode(), np.uint8)
        ends = np.cumsum(self.counts(len(own)))
        parts = np.split(self.all_gather(own.astype(np.float64)), ends[:-1])
        return [part.astype(np.uint8).tobytes().decode() for part in parts]

    def broadcast(self, array: Array) -> Array:
        """Rank 0's array on every rank; each passes one of that shape. Exact as `all_gather`."""
        mine = array if self.rank == 0 else namespace(array).zeros_like(array)
        return self.all_reduce(mine)[0]

    def clock(self, seconds: float) -> float:
        """Rank 0's time on every rank, so that all stop together."""
        return float(self.broadcast(np.asarray(seconds)))

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """If any rank raises in this block, every rank raises. The block must not communicate.

        An error that is neither `TypeError`, `ValueError`, `OverflowError` nor `OSError`, nor of a
        class made from these, becomes a `RuntimeError`.
        """
        try:
            yield
            error = ""
        except Exception as raised:
            if self.process_group is None:
                raise
            kind = next((k for k, cls in _KINDS.items() if isinstance(raised, cls)), "RuntimeError")
            error = f"{kind}: {raised or type(raised).__name__}"
        for rank, text in enumerate(self.texts(error)):
            if text:
                kind, _, message = text.partition(": ")
                raise _KINDS.get(kind, RuntimeError)(f"rank {rank}: {message}")

    def check_same(self, **values: Any) -> None:
        """Refuse values, by name, whose `repr` is not the same on every rank.

        Raises:
            ValueError: on every rank, with the first name and the two values.
        """
        if self.process_group is None:
            return
        texts = self.texts(json.dumps({name: repr(value) for name, value in values.items()}))
        first, *others = map(json.loads, texts)
        for rank, other in enumerate(others, start=1):
            for name, value in first.items():
                if other[name] != value:
                    raise ValueError(
                        f"{name}: expected the same on every rank, found {value} on rank 0 and "
                        f"{other[name]} on rank {rank}"
                    )


ALONE = Communicator()
"""This process and no other."""


def local(index: np.ndarray, own: slice) -> np.ndarray:
    """Those of the numbers of all ranks' rows that are this rank's, counted from its first row."""
    return index[(index >= own.start) & (index < own.stop)] - own.start


def shard(items: S, part: str) -> S:
    """Part i of n consecutive parts of a list, tuple or range; their lengths differ by at most one.

    For jobs that never talk (a Slurm array over checkpoints or layers), and for the rows that a
    rank extracts: `Subset(data, shard(range(len(data)), f"{rank}/{ranks}"))`. Neighbours stay
    together, so that each checkpoint can start from the one before.

    Args:
        items: what is divided.
        part: "i/n", with i from 0 to n - 1.

    Raises:
        TypeError: part is not a string, or items have no length or no slices.
        ValueError: part is not of that form, or i is not below n.
    """
    if not isinstance(part, str):
        raise TypeError(f'part: expected "i/n" with 0 <= i < n, found {shown(part)}')
    i, _, n = part.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise ValueError(f'part: expected "i/n" with 0 <= i < n, found {part!r}')
    try:
        items[: 0 * len(items)]
    except (TypeError, KeyError):
        raise TypeError(f"items: expected a list, tuple or range, found {shown(items)}") from None
    return items[len(items) * int(i) // int(n) : len(items) * (int(i) + 1) // int(n)]  # type: ignore[return-value]  # a slice of S is an S
