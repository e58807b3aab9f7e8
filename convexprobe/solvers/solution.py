"""What a solve returns: statuses, a history and the best points."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

import numpy as np

from convexprobe.arrays.backend import Array
from convexprobe.problem.objective import Evaluation


class Status(Enum):
    """How a task ended; the value is the sentence to show."""

    CERTIFIED = "certified: the gap is within tol"
    MAX_PASSES = "stopped: the budget of passes ran out before the gap reached tol"
    MAX_STEPS = "stopped: the budget of steps ran out before the gap reached tol"
    MAX_SECONDS = "stopped: the time ran out before the gap reached tol"
    ROUNDING = "stopped: rounding ended progress before the gap reached tol (float64 goes furthest)"
    VALIDATION = "stopped early: the loss on validation rows no longer falls; the gap says how far"
    UNCERTIFIED = "uncertified: progress ended, and with l2 = 0 no lower bound but 0 is known"
    SEPARABLE = "separable: with l2 = 0 the classes are separated and no minimiser exists"


@dataclass(frozen=True, kw_only=True)
class Solved:
    """What is known of one solved task; probes, path points, tables and histories build on it.

    Attributes:
        l2: the penalty.
        loss: mean cross-entropy on the rows it was fitted to, nats, without the penalty.
        objective: loss plus penalty, nats: what was minimised.
        gap: rigorous bound on `objective` minus its optimum, nats.
        label_entropy: `H(Y)` of those rows, nats: certified is `gap <= tol * label_entropy`.
        train_error: weighted fraction of those rows that are misclassified.
        status: how the solve ended.
        passes: passes over the rows until then, of all tasks that were solved together.
        seconds: likewise.
        start: where the solve started: "zero" (the best constant classifier), "copied" or
            "transferred" from an earlier probe, or "neighbour", the next larger penalty's solution.
    """

    l2: float
    loss: float
    objective: float
    gap: float
    label_entropy: float
    train_error: float
    status: Status
    passes: float
    seconds: float
    start: str = "zero"

    def known(self) -> dict[str, Any]:
        """The fields of this record by name, without those that a subclass adds."""
        return {f.name: getattr(self, f.name) for f in fields(Solved)}


NUMBERS = ("loss", "objective", "gap", "train_error", "passes", "seconds")
"""The numbers of a `Solved` that a `Solution` has as arrays."""


@dataclass(frozen=True)
class Record:
    """One step of the history, host arrays `(m,)` over all tasks.

    Attributes:
        step: steps taken.
        passes: passes spent by the family so far.
        seconds: time spent by the family so far.
        objective: `F` of the best point so far, nats.
        gap: its certified gap so far, nats.
    """

    step: int
    passes: float
    seconds: float
    objective: np.ndarray
    gap: np.ndarray


@dataclass(frozen=True)
class Solution:
    """The family's solution.

    Attributes are those of `Solved`, as host arrays `(m,)`, and

        w: best point of each task, `(m, p)` float64 on the problem's device.
        steps: steps that the solver took for each task, host integers `(m,)`.
        history: a record per step.
        state: the solver's last state of the tasks still running, to resume the same problem; None
            if there are none.
        running: which tasks that state is about.
        at: the evaluation at `w` as it was before it was rounded to the problem's dtype, if one has
            all tasks.
    """

    w: Array
    l2: np.ndarray
    loss: np.ndarray
    objective: np.ndarray
    gap: np.ndarray
    label_entropy: np.ndarray
    train_error: np.ndarray
    status: tuple[Status, ...]
    passes: np.ndarray
    seconds: np.ndarray
    steps: np.ndarray
    history: tuple[Record, ...] = field(repr=False)
    state: Any = field(repr=False)
    running: tuple[int, ...] = ()
    at: Evaluation | None = field(default=None, repr=False)

    def task(self, index: int, *, start: str = "zero", waited: float = 0.0) -> Solved:
        """One task's record; `waited` seconds were spent before this solve."""
        numbers = {
            name: float(getattr(self, name)[index]) for name in ("l2", "label_entropy", *NUMBERS)
        }
        numbers["seconds"] += waited
        return Solved(status=self.status[index], start=start, **numbers)
