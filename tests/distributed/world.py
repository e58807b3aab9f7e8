"""A world of four processes, the rows that each has, and what their answers must have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch

from convexprobe import ProbeSet
from convexprobe.activations.source import Rows
from convexprobe.activations.stored import Read, StoredRows
from convexprobe.arrays.backend import to_numpy
from convexprobe.arrays.ranks import ALONE, Communicator
from convexprobe.problem.objective import Problem
from tests.oracle import Data
from tests.processes import end, start

RANKS = 4


class Streamed(StoredRows):
    """Rows of a tensor that have to be read, and cannot be any more after so many passes."""

    def __init__(self, tensor: torch.Tensor, passes: float = np.inf, error: Any = None) -> None:
        self.tensor, self.passes, self.error = tensor, passes, error
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype  # type: ignore[assignment]

    @contextmanager
    def reader(self) -> Iterator[Read]:
        self.passes -= 1
        if self.passes < 0:
            raise self.error
        yield lambda start, stop, buffer: self.tensor[start:stop]

    def gather(self, index: np.ndarray) -> torch.Tensor:
        return self.tensor[torch.from_numpy(index)]


TIMEOUT = timedelta(seconds=20)


@dataclass(frozen=True)
class Ranks:
    """Where a check runs: this process in the world of four, and a pair made of ranks 0 and 1."""

    world: Communicator
    pair: Communicator | None

    def groups(self) -> Iterator[Communicator]:
        """Every group that this process is in."""
        yield self.world
        if self.pair is not None:
            yield self.pair


CHECKS: dict[str, Callable[[Ranks], None]] = {}


def check(function: Callable[..., None]) -> Callable[..., None]:
    """Run by every rank of the world."""
    CHECKS[function.__name__] = function
    return function


def uneven(n: int, communicator: Communicator, shares: tuple[int, ...] = (0, 5, 2, 1)) -> slice:
    """This rank's rows of `n`, dealt out in these shares: by default rank 0 has none."""
    edges = np.cumsum((0, *shares[: communicator.size]))
    edges = edges * n // edges[-1]
    return slice(int(edges[communicator.rank]), int(edges[communicator.rank + 1]))


def part(data: Data, own: slice) -> Data:
    weights = None if data.weights is None else data.weights[own]
    return replace(data, x=data.x[own], y=data.y[own], weights=weights)


def problems(
    data: Data, l2: Any, communicator: Communicator, to: Callable[[Any], Any] = np.asarray
) -> tuple[Problem, Problem]:
    """The problem over ranks and that of one process."""
    found = []
    for own, ranks in ((part(data, uneven(len(data.y), communicator)), communicator),
                        (data, ALONE)):  # fmt: skip
        weights = None if own.weights is None else to(own.weights)
        found.append(Problem(Rows(to(own.x)), to(own.y), l2, classes=data.k, weights=weights,
                             communicator=ranks))  # fmt: skip
    return found[0], found[1]


def same_bits(probes: ProbeSet, communicator: Communicator) -> None:
    """Every rank has the same probes, to the last bit."""
    for name, probe in probes.items():
        for field in fields(probe):
            value = getattr(probe, field.name)
            text = to_numpy(value).tobytes().hex() if field.name in ("weights", "bias") else value
            communicator.check_same(**{f"{name}.{field.name}": text})


def agree(ours: ProbeSet, theirs: ProbeSet) -> None:
    """Both stand within their gaps of one optimum, and ended in the same way at the same choices.

    Not the same digits: rounding may decide an inner iteration, and then both stop elsewhere.
    """
    assert list(ours) == list(theirs)
    for name, probe in ours.items():
        other = theirs[name]
        assert (probe.classes, probe.status) == (other.classes, other.status)
        assert abs(probe.objective - other.objective) <= max(probe.gap, other.gap)
        np.testing.assert_allclose(probe.rows, other.rows, rtol=1e-6)
        np.testing.assert_allclose(probe.l2, other.l2, rtol=1e-6)
        np.testing.assert_allclose(probe.train_error, other.train_error, atol=0.02)
        assert (probe.validation_error is None) == (other.validation_error is None)
        if probe.validation_error is not None:
            np.testing.assert_allclose(probe.validation_error, other.validation_error, atol=0.02)


def agree_with_one(
    ours: ProbeSet,
    communicator: Communicator,
    fit: Callable[..., ProbeSet],
    *args: Any,
    **more: Any,
) -> None:
    """Every rank has the same probes; they agree with those of one process, which rank 0 fits."""
    same_bits(ours, communicator)
    if communicator.rank == 0:
        agree(ours, fit(*args, **more))


def spawn(function: Callable[..., None], ranks: int, *args: Any) -> list[int]:
    """Run `function(rank, *args)` in that many processes; their exit codes."""
    processes = [start(function, rank, *args) for rank in range(ranks)]
    return [end(process) for process in processes]
