"""What is solved: a case, the judge of everybody's coefficients, and the optimum it measures from.

The objective is the package's: mean cross-entropy + l2/2 ||W||^2, intercept free, from zero.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from convexprobe.objective import Problem
from convexprobe.solve import solve
from convexprobe.solvers import NewtonCG
from convexprobe.sources import Rows

JUDGE_BYTES = 1 << 26
"""Of a float64 block of rows: copies of whole matrices would not fit beside them."""


@dataclass(frozen=True)
class Settings:
    """Attributes: `out`, the folder of results and caches; `rows` of the MNIST cases."""

    out: Path
    rows: int = 20_000


@dataclass(frozen=True)
class Case:
    """Named penalties on named rows; `load` gives float32 rows `(n, d)` and labels `(n,)`."""

    name: str
    load: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    l2: tuple[float, ...]
    k: int


@dataclass(frozen=True)
class Task:
    """What a competitor is given.

    Attributes:
        x: rows, `(n, d)`, float32 or float64.
        y: labels `0..k-1`, `(n,)` int64, each class present.
        k: number of classes.
        l2: the penalties; one, but for competitors that solve families.
        start: coefficients `(k, d + 1)` of the neighbour on a path, or None for zero.
    """

    x: np.ndarray
    y: np.ndarray
    k: int
    l2: tuple[float, ...]
    start: np.ndarray | None = None

    @property
    def n(self) -> int:
        """Rows."""
        return self.x.shape[0]

    @property
    def d(self) -> int:
        """Features."""
        return self.x.shape[1]


def multiclass(coefficients: np.ndarray, k: int, d: int) -> np.ndarray:
    """Coefficients `(k, d + 1)`, intercepts last, in float64, of whatever a solver holds.

    A solver of two classes may fit one row `w`, the difference: ours are `-w/2` and `w/2`.
    """
    c = np.asarray(coefficients, dtype=np.float64)
    if c.ndim == 1:  # scikit-learn's flat layout
        c = c.reshape(-1, d + 1, order="F")
    return np.concatenate([-c / 2, c / 2]) if c.shape[0] == 1 and k == 2 else c


class Judge:
    """`(F - F*) / H(Y)` of coefficients: plain torch in float64, nothing of the package in it."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, k: int) -> None:
        self.x, self.y, self.k = x, y, k
        share = torch.bincount(y, minlength=k).double() / len(y)
        self.entropy = float(-(share * share.log())[share > 0].sum())

    def value(self, coefficients: np.ndarray, l2: float) -> float:
        """`F`, nats."""
        c = torch.from_numpy(multiclass(coefficients, self.k, self.x.shape[1]))
        weights, bias = c[:, :-1], c[:, -1]
        rows, loss = max(1, JUDGE_BYTES // (8 * self.x.shape[1])), 0.0
        for x, y in zip(self.x.split(rows), self.y.split(rows), strict=True):
            z = torch.nn.functional.linear(x.double(), weights, bias)
            loss += float(torch.nn.functional.cross_entropy(z, y, reduction="sum"))
        value = loss / len(self.y) + 0.5 * l2 * float(weights.square().sum())
        return value if np.isfinite(value) else np.inf


def lower_bounds(case: Case, x: torch.Tensor, y: torch.Tensor, cache: Path) -> np.ndarray:
    """The highest certified lower bound on each optimum, `(m,)`: from a float64 solve, kept.

    Kept by a checksum of the data, so that a changed case is solved again.
    """
    crc = zlib.crc32(y.numpy(), zlib.crc32(x.numpy()))
    kept = json.loads(cache.read_text()) if cache.exists() else {}
    bounds = []
    for l2 in case.l2:
        key = f"{crc:08x} {tuple(x.shape)} {case.k} {l2!r}"
        if key not in kept:
            start = solve(Problem(Rows(x), y, [l2], classes=case.k), NewtonCG(), tol=1e-4).w
            problem = Problem(Rows(x.double()), y, [l2], classes=case.k)
            s = solve(problem, NewtonCG(), start, tol=1e-7, max_passes=600, max_seconds=60)
            kept[key] = float(s.value[0] - s.gap[0]), float(s.gap[0] / problem.label_entropy[0])
            cache.write_text(json.dumps(kept, indent=1))
        bounds.append(kept[key][0])
        if kept[key][1] > 1e-6:
            print(f"    F* known within {kept[key][1]:.1e} H(Y) only", flush=True)
    return np.array(bounds)


def synthetic_labels(x: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    """Labels drawn from a random linear model of the whitened scale of the rows; every class
    present."""
    w = torch.randn(x.shape[1], k, generator=generator)
    z = x @ w
    z = 2.0 * z / z.std()
    noise = -torch.log(-torch.log(torch.rand(z.shape, generator=generator).clamp(1e-9, 1 - 1e-7)))
    y = (z + noise).argmax(1)
    y[torch.randperm(len(y), generator=generator)[:k]] = torch.arange(k)
    return y
