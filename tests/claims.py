"""What a probe says of itself, held against the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from convexprobe import PathPoint, Probe, Status
from convexprobe.arrays.backend import to_numpy
from tests.oracle import Data, minimum, reference


def parameters(probe: Probe) -> np.ndarray:
    """The probe's weights and biases as one vector `(p,)`."""
    return np.concatenate([to_numpy(probe.weights).ravel(), to_numpy(probe.bias)]).astype(float)


def distance(probe: Probe, data: Data) -> float:
    """How far the probe is from the optimum of its own objective, by the oracle."""
    return reference(data, parameters(probe), probe.l2)[0] - minimum(data, probe.l2)[1]


def check(probe: Probe, data: Data, tol: float = 1e-3) -> None:
    """The probe is certified, and what it claims is true."""
    assert probe.status is Status.CERTIFIED
    assert -1e-9 <= distance(probe, data) <= probe.gap <= tol * data.label_entropy


def untimed(path: Sequence[PathPoint]) -> list[PathPoint]:
    """A path without its clock: what two runs of the same work share to the last bit."""
    return [replace(point, seconds=0.0) for point in path]
