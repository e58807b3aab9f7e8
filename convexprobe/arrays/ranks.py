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

Every message begins with a part of fixed length that says who sends it, so ranks that are in
different functions see that at once. A rank that fails sends such a part too, and all others, which
wait for its next sum, raise its error. It also leaves a note in the group's store: ranks that are
in the middle of a pass look there every second, and join. A rank that can send nothing any more
leaves a note of another kind, and ranks that wait for a sum end at that.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from convexprobe.arrays.backend import Array, from_torch, namespace, to_torch

_KINDS = {kind.__name__: kind for kind in (TypeError, ValueError, OverflowError, OSError)}

_FIRST = 64
"""Numbers in the part of a message that is of fixed length: a tag of two, and the first others."""

_FAILED = 0
"""The code of a rank that has failed; those of functions are larger."""

_LOOK = 1.0
"""Seconds between two looks into the group's store."""

_WILL_SEND, _LOST = "convexprobe/failed", "convexprobe/lost"
"""Keys in the group's store: the errors of ranks that will send them, and of one that will not."""


class LostRankError(RuntimeError):
    """Another rank is gone or silent: nothing that this one does can go on."""


@dataclass(frozen=True)
class Communicator:
    """The ranks over which rows are distributed; by default this process alone.

    Attributes:
        process_group: a `torch.distributed` process group that this process is in, or None.
    """

    process_group: Any = None
    _looked: list[float] = field(
        default_factory=lambda: [time.monotonic()], init=False, repr=False, compare=False
    )

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
            RuntimeError: another rank is in another function, or has arrays of another size.
            LostRankError: a rank is gone, cannot send its error, or did not answer within the
                group's timeout.
            TypeError, ValueError, ...: a rank failed in `raise_together`, with such an error.
        """
        if self.process_group is None:
            return arrays
        parts = [to_torch(array) for array in arrays]
        device = self._device(parts[0])
        flat = torch.cat([part.reshape(-1).to(device, torch.float64) for part in parts])
        sums = torch.split(self._sum_tagged(flat), [part.numel() for part in parts])
        return tuple(from_torch(s, array) for s, array in zip(sums, arrays, strict=True))

    def _sum_tagged(self, flat: torch.Tensor, failed: str = "") -> torch.Tensor:
        """The sum of a vector over the ranks; all raise an error if not all of them send this one.

        Args:
            flat: `(r,)` float64.
            failed: the error of this rank, which has nothing to sum.
        """
        code = zlib.crc32(f"{_caller().f_code.co_qualname} {len(flat)}".encode()) % 2**20 + 1
        code, size = _FAILED if failed else code, self.size
        # the codes are equal if, and only if, their sum and that of their squares are this rank's
        tag = flat.new_tensor([code, code**2])
        first = torch.nn.functional.pad(flat[: _FIRST - 2], (0, max(_FIRST - 2 - len(flat), 0)))
        first = self._sum(torch.cat([tag, first]))
        if failed or first[:2].tolist() != [size * code, size * code**2]:
            self._raise_disagreement(failed, len(flat))
        flat = torch.cat([first[2:], self._sum(flat[_FIRST - 2 :])])[: len(flat)]
        return flat

    def _sum(self, flat: torch.Tensor) -> torch.Tensor:
        """The sum of a vector over the ranks, in the order in which they call this."""
        if len(flat) == 0:
            return flat
        try:
            work = dist.all_reduce(flat, group=self.process_group, async_op=True)
            self._wait(work, flat)
        except LostRankError:
            raise
        except RuntimeError as error:
            raise _of_all(
                LostRankError(
                    f"rank {self.rank} of {self.size}: another rank is gone or did not answer "
                    f"within the group's timeout; see its own error, and start the job again "
                    f"({error})"
                )
            ) from error
        return flat

    def _wait(self, work: Any, flat: torch.Tensor) -> None:
        """Wait for a sum on its way, unless a rank says that it can send nothing any more."""
        started = looked = time.monotonic()
        while not work.is_completed():
            if flat.device.type == "cpu":
                with suppress(RuntimeError):  # not yet; or an error, which is raised below
                    work.wait(timedelta(seconds=_LOOK))
                    return
            else:  # `wait` does not wait on the host; with a time limit it ends the whole group
                time.sleep(min(0.1 * (time.monotonic() - started), 0.01))
            if time.monotonic() - looked >= _LOOK:
                looked = time.monotonic()
                if (note := self._note(_LOST)) and not work.is_completed():
                    raise _of_all(
                        LostRankError(
                            f"rank {self.rank} of {self.size}: another rank is gone; start the job "
                            f"again ({note})"
                        )
                    )
        work.wait()

    def _store(self) -> Any:
        """The group's store, or None in a torch that does not tell."""
        return getattr(self.process_group, "get_group_store", lambda: None)()

    def _note(self, key: str) -> str:
        """What a rank left in the group's store under a key; "" if nothing, or if it is gone."""
        with suppress(RuntimeError):
            store = self._store()
            if store is not None and store.check([key]):
                return str(store.get(key).decode())
        return ""

    def _leave_note(self, key: str, error: str) -> None:
        """Tell an error in the group's store; the first that is told there stands."""
        with suppress(RuntimeError):
            store = self._store()
            if store is not None and not store.check([key]):
                store.set(key, f"rank {self.rank}: {error}")

    def look(self) -> None:
        """Raise the error of another rank if one has failed; looks once a second at most.

        For the middle of long work between two messages: the rank then joins the message in which
        the failed rank tells its error, and is where all others are. Otherwise it would come to it
        at its own next message.

        Raises:
            TypeError, ValueError, ...: a rank failed in `raise_together`, with such an error.
        """
        if self.process_group is None or time.monotonic() - self._looked[0] < _LOOK:
            return
        self._looked[0] = time.monotonic()
        if self._note(_WILL_SEND):
            self.all_reduce(np.zeros(0))

    def _device(self, tensor: torch.Tensor) -> torch.device:
        """Where messages about the tensor are sent from."""
        backend, here = dist.get_backend(self.process_group), tensor.device.type
        known = dist.Backend.backend_capability.get(backend, [here])
        if here in known:
            return tensor.device
        if "cpu" in known:
            return torch.device("cpu")
        return torch.device(known[0], torch.accelerator.current_device_index())

    def _raise_disagreement(self, failed: str, length: int) -> None:
        """Raise one error on every rank: that of the first that failed, or what each is doing."""
        if failed:  # before the next sum, so that no rank sees it after that
            with suppress(RuntimeError):
                if (store := self._store()) is not None:
                    store.delete_key(_WILL_SEND)
        name = f"{_public_function()} ({_caller().f_code.co_qualname}, {length} numbers)"

        def reduce(values: np.ndarray) -> np.ndarray:
            flat = torch.from_numpy(values)
            return self._sum(flat.to(self._device(flat))).cpu().numpy()

        reports = [json.loads(text) for text in self._gather(json.dumps([failed, name]), reduce)]
        for rank, (error, _) in enumerate(reports):
            if error:
                kind, _, message = error.partition(": ")
                raise _of_all(_KINDS.get(kind, RuntimeError)(f"rank {rank}: {message}"))
        calls = "; ".join(f"rank {rank}: {name}" for rank, (_, name) in enumerate(reports))
        raise _of_all(
            RuntimeError(f"every rank must make the same calls in the same order, found {calls}")
        )

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
        return self._gather(text, lambda values: self.all_reduce(values)[0])

    def _gather(self, text: str, reduce: Callable[[np.ndarray], np.ndarray]) -> list[str]:
        own, lengths = np.frombuffer(text.encode(), np.uint8), np.zeros(self.size)
        lengths[self.rank] = len(own)
        ends = np.cumsum(reduce(lengths)).astype(np.int64)
        whole = np.zeros(ends[-1])
        whole[ends[self.rank] - len(own) : ends[self.rank]] = own
        parts = np.split(reduce(whole), ends[:-1])
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
        """If any rank raises in this block, every rank raises.

        The others do so at their next message, in `look`, or at the end of the block. An error that
        is neither `TypeError`, `ValueError`, `OverflowError` nor `OSError`, nor of a class made
        from these, becomes a `RuntimeError`. A rank that is interrupted, or whose error cannot be
        sent, does not wait for the others: they raise `LostRankError`.
        """
        if self.process_group is None:
            yield
            return
        try:
            yield
            self.all_reduce(np.zeros(0))
        except Exception as raised:
            if isinstance(raised, LostRankError):
                self._leave_note(_LOST, str(raised))
            if getattr(raised, "of_all_ranks", False):
                raise
            kind = next((k for k, cls in _KINDS.items() if isinstance(raised, cls)), "RuntimeError")
            error = f"{kind}: {raised or type(raised).__name__}"
            self._leave_note(_WILL_SEND, error)
            try:
                nothing = torch.zeros(0, dtype=torch.float64)
                self._sum_tagged(nothing.to(self._device(nothing)), error)
            except BaseException as answer:
                unsent = not getattr(answer, "of_all_ranks", False)  # its device is broken, say
                if unsent or isinstance(answer, LostRankError):
                    self._leave_note(_LOST, error)
                if unsent and isinstance(answer, Exception):
                    raise _of_all(
                        LostRankError(
                            f"rank {self.rank} of {self.size}: its error cannot be sent; start the "
                            f"job again ({error})"
                        )
                    ) from answer
                raise
        except BaseException as raised:  # somebody ends this process
            self._leave_note(_LOST, type(raised).__name__)
            raise

    def check_same(self, **values: Any) -> None:
        """Refuse values, by name, whose `repr` is not the same on every rank.

        Raises:
            ValueError: on every rank, with the first name and the two values.
        """
        if self.process_group is None:
            return
        # `repr` of an array leaves out most of its numbers and digits
        written = {n: repr(v.tolist() if hasattr(v, "tolist") else v) for n, v in values.items()}
        first, *others = map(json.loads, self.texts(json.dumps(written)))
        for rank, other in enumerate(others, start=1):
            for name in dict.fromkeys([*first, *other]):
                ours, theirs = first.get(name, "nothing"), other.get(name, "nothing")
                if ours != theirs:
                    raise _of_all(
                        ValueError(
                            f"{name}: expected the same on every rank, found {ours:.200} on rank 0 "
                            f"and {theirs:.200} on rank {rank}"
                        )
                    )


ALONE = Communicator()
"""This process and no other."""


def _of_all(error: Exception) -> Exception:
    """The error, marked as one that every rank raises, or that no rank can be told of."""
    error.of_all_ranks = True  # type: ignore[attr-defined]  # any error may carry the mark
    return error


def _caller() -> FrameType:
    """The innermost function outside this file, whose message it is."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__") in (__name__, "contextlib"):
        frame = frame.f_back
    return frame


def _public_function() -> str:
    """The outermost function of the package that is running."""
    frame, name = sys._getframe(1), ""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("convexprobe."):
            name = frame.f_code.co_qualname
        frame = frame.f_back  # type: ignore[assignment]  # None above the outermost
    return name


def local(index: np.ndarray, own: slice) -> np.ndarray:
    """Those of the numbers of all ranks' rows that are this rank's, counted from its first row."""
    return index[(index >= own.start) & (index < own.stop)] - own.start
