"""Problems at random points, and a family of three tasks, for the tests of the objective."""

from __future__ import annotations

from typing import Any

import numpy as np

from convexprobe.activations.source import Rows
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_sample import Sample
from tests.oracle import Data, random_data

EXACT = {"rtol": 1e-11, "atol": 1e-12}  # float64 sums of at most 100 terms of size 1


def point(problem: Problem, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((problem.m, problem.p))


def everything(problem: Problem, w: Any) -> Sample:
    """All rows, held at `w`."""
    return Sample.of(problem, w, np.arange(problem.n), np.ones(problem.n))


def family(seed: int = 0, most_rows: int = 50) -> tuple[Problem, list[Data], list[float]]:
    """Three tasks that differ in everything that can differ."""
    base = random_data(50, 4, 3, seed)
    rng = np.random.default_rng(seed + 1)
    labels = np.stack([base.y, rng.permutation(base.y), rng.integers(0, 3, 50)])
    weights, l2 = rng.exponential(size=(3, 50)), [1e-3, 1e-1, 2.0]
    tasks = [Data(base.x, labels[t], 3, weights[t]) for t in range(3)]
    rows = Rows(base.x, most_rows)
    return Problem(rows, labels, l2, classes=3, weights=weights), tasks, l2
