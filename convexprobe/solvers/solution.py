"""What a solve returns: its status, its history and the points it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from convexprobe.arrays.backend import Array


class Status(Enum):
    """How a task ended; the value is the sentence to show."""

    CERTIFIED = "certified: the gap is within tol"
    MAX_PASSES = "stopped: the budget of passes ran out before the gap reached tol"
    MAX_SECONDS = "stopped: the time ran out before the gap reached tol"
    ROUNDING = "stopped: rounding ended progress before the gap reached tol (float64 goes furthest)"
    VALIDATION = "stopped early: the loss on validation rows no longer falls; the gap says how far"
    UNCERTIFIED = "uncertified: progress ended, and with l2 = 0 no lower bound but 0 is known"
    SEPARABLE = "separable: with l2 = 0 the classes are separated and no minimiser exists"


@dataclass(frozen=True)
class Record:
    """One step of the history, host arrays `(m,)` over all tasks.

    Attributes:
        step: steps taken.
        passes: passes spent by the family so far.
        seconds: time spent by the family so far.
        value: `F` of the best point so far, nats.
        gap: its certified gap so far, nats.
    """

    step: int
    passes: float
    seconds: float
    value: np.ndarray
    gap: np.ndarray


@dataclass(frozen=True)
class Solution:
    """The family's solution.

    Attributes:
        w: best point of each task, `(m, p)` float64 on the problem's device.
        value: `F(w)`, nats, host `(m,)`.
        loss: mean cross-entropy, nats, host `(m,)`.
        gap: bound on `F(w) - F*`, nats, host `(m,)`.
        error: weighted fraction of rows that are misclassified, host `(m,)`.
        status: how each task ended.
        passes: passes until each task ended, host `(m,)`.
        seconds: seconds until each task ended, host `(m,)`.
        history: a record per step.
        state: the solver's last state of the tasks still running, to resume the same problem.
        running: which tasks that state is about.
    """

    w: Array
    value: np.ndarray
    loss: np.ndarray
    gap: np.ndarray
    error: np.ndarray
    status: tuple[Status, ...]
    passes: np.ndarray
    seconds: np.ndarray
    history: tuple[Record, ...] = field(repr=False)
    state: Any = field(repr=False)
    running: tuple[int, ...] = ()
