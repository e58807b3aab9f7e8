"""The task axis: taking tasks out of any record whose arrays have it first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np

from convexprobe.arrays.backend import is_array, like, namespace

T = TypeVar("T")


class PerTask(ABC):
    """Something that knows how to give up tasks.

    An abstract class and not a protocol: asking whether something follows a protocol takes
    milliseconds, as long as a Newton step on a small layer.
    """

    @abstractmethod
    def take_tasks(self, index: list[int]) -> Any:
        """The same thing for the remaining tasks."""


def take_tasks(state: T, index: list[int]) -> T:
    """The tasks `index` of a record whose arrays have the task axis first.

    Recurses through dataclasses and lists; numbers and None stay as they are.
    """
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
