"""The task axis: keep some tasks of any record whose arrays have that axis first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np

from convexprobe.arrays.backend import is_array, like, namespace

T = TypeVar("T")


class PerTask(ABC):
    """Something that knows how to keep some of its tasks.

    An abstract class, as the check whether something follows a protocol takes milliseconds.
    """

    @abstractmethod
    def take_tasks(self, index: list[int]) -> Any:
        """The same thing for the tasks `index` alone."""


def take_own(array: Any, index: list[int]) -> Any:
    """The tasks `index` of an array `(m, ...)`; None, or `(1, ...)` that all share, stays.

    No copy is made where that is all tasks in their order: nobody changes such an array.
    """
    if array is None or array.shape[0] == 1 or index == list(range(array.shape[0])):
        return array
    return take_tasks(array, index)


def take_tasks(state: T, index: list[int]) -> T:
    """The tasks `index` of arrays, and of lists and dataclasses of them; all else stays."""
    out: Any = state
    if isinstance(state, PerTask):
        out = state.take_tasks(index)
    elif isinstance(state, list):
        out = [take_tasks(item, index) for item in state]
    elif is_dataclass(out) and not isinstance(out, type):
        out = replace(out, **{f.name: take_tasks(getattr(out, f.name), index) for f in fields(out)})
    elif isinstance(state, np.ndarray):
        out = state[index]
    elif is_array(state):
        out = namespace(state).take(state, like(np.asarray(index, dtype=np.int64), state), axis=0)
    return out
