"""The clock that stops, and what it kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan

import numpy as np

Value = Callable[[np.ndarray], float]
"""Relative suboptimality of coefficients."""


class OutOfTime(Exception):
    """Raised inside a competitor when its time is up."""


class Arrived(Exception):
    """Raised inside a competitor when it is as near the optimum as is of interest."""


@dataclass(frozen=True)
class Point:
    """A moment of a run.

    Attributes:
        seconds: on the competitor's clock.
        passes: all rows read, in units of a fused value-and-gradient.
        coefficients: `(k, d + 1)` or what `multiclass` understands; `(m, k, d + 1)` of families.
        gap: certified, relative to `H(Y)`; NaN for a competitor that has none.
        excess: suboptimality beyond that of the coefficients, where they are those of a later
            moment and the difference is the competitor's own.
    """

    seconds: float
    passes: float
    coefficients: np.ndarray
    gap: float = nan
    excess: float = 0.0


class Recorder:
    """A clock that stops while it keeps copies, evaluates them and sets up what users have not to.

    Args:
        limit: seconds after which the run is ended.
        value: relative suboptimality of coefficients.
        goal: the run ends at the first point seen to be this near.
        certify: and, where points carry gaps, whose gap is at most this.
        scale: `H(Y)`, nats, the unit of suboptimality.
    """

    def __init__(
        self,
        limit: float,
        value: Value,
        goal: float = 0.0,
        certify: float = inf,
        scale: float = 1.0,
    ) -> None:
        self.limit, self.goal, self.certify, self.scale = limit, goal, certify, scale
        self.points: list[Point] = []
        self.passes = 0.0
        self._value = value
        self._known: dict[int, float] = {}
        self._paused, self._next, self._started = 0.0, 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """On the clock now."""
        return time.perf_counter() - self._started - self._paused

    def pause(self, seconds: float) -> None:
        """Take back time that a user would not have spent."""
        self._paused += seconds

    def __call__(self, coefficients: np.ndarray, passes: float = 0.0, gap: float = nan) -> None:
        """Keep a point after further `passes`; raises when the run is over."""
        now = time.perf_counter()
        seconds = now - self._started - self._paused
        self.passes += passes
        self.points.append(Point(seconds, self.passes, np.array(coefficients, copy=True), gap))
        self.check(seconds)
        self._paused += time.perf_counter() - now

    def check(self, seconds: float) -> None:
        """End the run if it has arrived, looked at sparingly, or if its time is up."""
        if seconds >= self._next:
            now = time.perf_counter()
            near = self.value(len(self.points) - 1) <= self.goal
            if near and not self.points[-1].gap > self.certify:
                raise Arrived
            # Every tenth more, and never longer looking than running.
            self._next = seconds + max(0.1 * seconds, time.perf_counter() - now)
        if seconds > self.limit:
            raise OutOfTime

    def value(self, index: int) -> float:
        """Relative suboptimality of a point, evaluated once."""
        if index not in self._known:
            point = self.points[index]
            self._known[index] = self._value(point.coefficients) + point.excess
        return self._known[index]

    def replace(self, points: list[Point]) -> None:
        """Forget what was kept and keep these."""
        self.points, self._known = points, {}

    def first_reached(self, target: float) -> int | None:
        """Index of the first point at or below the target, or None.

        Bisection over the record (values fall but for line-search trials): a handful of
        evaluations instead of one for each point.
        """
        last = len(self.points) - 1
        for index in range(max(0, last - 2), last + 1):
            self.value(index)
        hits = [index for index, value in self._known.items() if value <= target]
        if not hits:
            return None
        low, high = 0, min(hits)
        while low < high:
            middle = (low + high) // 2
            if self.value(middle) <= target:
                high = middle
            else:
                low = middle + 1
        return low
