"""What is solved and how it is judged: cases, tasks, true suboptimality, reference optima.

The objective is the package's: mean cross-entropy + l2/2 ||W||^2 in nats, with a free intercept.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import like
from convexprobe.probes.layer import in_numpy
from convexprobe.problem.objective import Problem
from convexprobe.solvers import NewtonCG
from convexprobe.solvers.loop import solve

JUDGE_BYTES = 1 << 26
"""Size of a float64 block of rows: a float64 copy of all rows may not fit in memory."""


@dataclass(frozen=True)
class Settings:
    """Settings of the problems: `out`, the folder of results and caches; `rows` of MNIST cases."""

    out: Path
    rows: int = 20_000


@dataclass(frozen=True)
class Case:
    """A problem: its penalties, and `load`, which returns float32 `(n, d)` and labels `(n,)`."""

    name: str
    load: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    l2: tuple[float, ...]
    k: int


@dataclass(frozen=True)
class Task:
    """What a peer is given to solve.

    Attributes:
        x: rows, `(n, d)`, float32 or float64.
        y: labels `0..k-1`, `(n,)` int64; each class occurs.
        k: number of classes.
        l2: the penalties; only peers that solve families are given more than one.
        start: coefficients `(k, d + 1)` to start from, or None for zero.
    """

    x: np.ndarray
    y: np.ndarray
    k: int
    l2: tuple[float, ...]
    start: np.ndarray | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.x.shape[0]

    @property
    def d(self) -> int:
        """Number of features."""
        return self.x.shape[1]


def problem_of(x: np.ndarray, labels: np.ndarray, k: int) -> Problem:
    """The problem that `fit_probes` makes of rows `(n, d)` and labels, `(n,)` or `(m, n)`.

    Few rows are NumPy's; the penalties are those of the path, which `solve_path` sets.
    """
    tasks = len(np.atleast_2d(labels))
    (rows,) = in_numpy([Rows(torch.from_numpy(x))], max(x.shape[1], tasks * k))
    return Problem(rows, like(labels, rows.reference), np.zeros(tasks), classes=k)


def multiclass(coefficients: np.ndarray, k: int, d: int) -> np.ndarray:
    """Convert any solver's coefficients to float64 `(k, d + 1)`, intercepts last.

    For two classes a solver may fit one row `w`, the difference: ours are `-w/2` and `w/2`.
    """
    c = np.asarray(coefficients, dtype=np.float64)
    if c.ndim == 1:  # scikit-learn's flat layout
        c = c.reshape(-1, d + 1, order="F")
    return np.concatenate([-c / 2, c / 2]) if c.shape[0] == 1 and k == 2 else c


def label_entropy(y: torch.Tensor) -> float:
    """Return `H(Y)` of the labels in nats."""
    share = torch.bincount(y).double() / len(y)
    return float(-(share * share.log())[share > 0].sum())


class Judge:
    """Evaluates anyone's coefficients in float64 with plain torch, independent of the package."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, k: int) -> None:
        self.x, self.y, self.k, self.entropy = x, y, k, label_entropy(y)

    def value(self, coefficients: np.ndarray, l2: float) -> float:
        """Return the objective `F` in nats; infinity where it is not finite."""
        c = torch.from_numpy(multiclass(coefficients, self.k, self.x.shape[1])).to(self.x.device)
        weights, bias = c[:, :-1], c[:, -1]
        rows, loss = max(1, JUDGE_BYTES // (8 * self.x.shape[1])), 0.0
        for x, y in zip(self.x.split(rows), self.y.split(rows), strict=True):
            z = torch.nn.functional.linear(x.double(), weights, bias)
            loss += float(torch.nn.functional.cross_entropy(z, y, reduction="sum"))
        value = loss / len(self.y) + 0.5 * l2 * float(weights.square().sum())
        return value if np.isfinite(value) else np.inf


def lower_bounds(case: Case, x: torch.Tensor, y: torch.Tensor, cache: Path) -> np.ndarray:
    """Return a certified lower bound on each penalty's optimum, `(m,)` nats, by a float64 solve.

    Bounds are kept in the file `cache` under a checksum of the data: changed data is solved again.
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
            kept[key] = float(s.objective[0] - s.gap[0]), float(s.gap[0] / problem.label_entropy[0])
            cache.write_text(json.dumps(kept, indent=1))
        bounds.append(kept[key][0])
        if kept[key][1] > 1e-6:
            print(f"    F* is only known to within {kept[key][1]:.1e} H(Y)", flush=True)
    return np.array(bounds)


def synthetic_labels(x: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    """Draw labels from a random linear model with logits of deviation 2; every class occurs."""
    w = torch.randn(x.shape[1], k, generator=generator)
    z = x @ w
    z = 2.0 * z / z.std()
    noise = -torch.log(-torch.log(torch.rand(z.shape, generator=generator).clamp(1e-9, 1 - 1e-7)))
    y = (z + noise).argmax(1)
    y[torch.randperm(len(y), generator=generator)[:k]] = torch.arange(k)
    return y
