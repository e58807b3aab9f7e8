"""The recorder: keeps a run's iterates, and a clock that excludes the cost of keeping them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan

import numpy as np

Value = Callable[[np.ndarray], float]
"""Relative suboptimality of coefficients."""


class OutOfTime(Exception):
    """Raised inside a peer when its time is up."""


class Arrived(Exception):
    """Raised inside a peer when it is as near the optimum as it has to be."""


@dataclass(frozen=True)
class Point:
    """One iterate of a run.

    Attributes:
        seconds: on the peer's clock.
        passes: reads of all rows so far; a fused value and gradient is one.
        coefficients: `(k, d + 1)` or what `multiclass` understands; `(m, k, d + 1)` for families.
        gap: certified, relative to `H(Y)`; NaN for a peer that has none.
        excess: added to the suboptimality of the coefficients. For a peer that only returns its
            last coefficients: how far, by its own trace, this iterate was above them.
    """

    seconds: float
    passes: float
    coefficients: np.ndarray
    gap: float = nan
    excess: float = 0.0


class Meter:
    """Stands in for a `Recorder` where a solver stops by itself: counts passes, keeps nothing.

    Args:
        limit: CPU seconds of this process after which the run is ended.
    """

    def __init__(self, limit: float = inf) -> None:
        self.limit, self.passes, self._started = limit, 0.0, time.process_time()

    @property
    def seconds(self) -> float:
        """CPU seconds since it was made."""
        return time.process_time() - self._started

    def __call__(self, coefficients: object, passes: float = 0.0, gap: float = nan) -> None:
        """Count `passes` more passes; raises when the time is up."""
        self.passes += passes
        if self.seconds > self.limit:
            raise OutOfTime


class Recorder:
    """Keeps iterates, evaluates them, and ends the run; its clock stops meanwhile.

    Args:
        limit: seconds after which the run is ended.
        value: relative suboptimality of coefficients.
        goal: the run ends at the first evaluated point with at most this suboptimality.
        certify: where points carry gaps, the gap also has to be at most this.
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

    def __call__(self, coefficients: np.ndarray, passes: float = 0.0, gap: float = nan) -> None:
        """Keep a point reached after `passes` more passes; raises when the run is over."""
        now = time.perf_counter()
        seconds = now - self._started - self._paused
        self.passes += passes
        self.points.append(Point(seconds, self.passes, np.array(coefficients, copy=True), gap))
        self.check(seconds)
        self._paused += time.perf_counter() - now

    def check(self, seconds: float) -> None:
        """Raise if the last point has arrived, or if the time is up. Not every point is judged."""
        if seconds >= self._next:
            now = time.perf_counter()
            near = self.value(len(self.points) - 1) <= self.goal
            if near and not self.points[-1].gap > self.certify:
                raise Arrived
            # Judge again after a tenth more time, and spend no longer judging than running.
            self._next = seconds + max(0.1 * seconds, time.perf_counter() - now)
        if seconds > self.limit:
            raise OutOfTime

    def value(self, index: int) -> float:
        """Return the relative suboptimality of a point, evaluated once."""
        if index not in self._known:
            point = self.points[index]
            self._known[index] = self._value(point.coefficients) + point.excess
        return self._known[index]

    def replace(self, points: list[Point]) -> None:
        """Replace all points, for peers that start again with a larger budget."""
        self.points, self._known = points, {}

    def first_reached(self, target: float) -> int | None:
        """Return the index of the first point at or below the target, or None.

        Values fall except for line-search trials, so bisection needs only a few evaluations.
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
