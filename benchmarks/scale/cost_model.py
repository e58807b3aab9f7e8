"""A model of what a solve costs by its size, fitted to measurements and tested on others.

Seconds are modelled as

    passes (a n d k + b n k + c n d) + e d^3 + f,

The terms are products with the rows, softmax and line search on logits, reading the rows, the
preconditioner, and what does not depend on size. `a` is at least what the products take at the
ceiling measured on the device: a fit to small sizes alone may promise more than the device can do.
Passes to the certificate are modelled as

    g + h s / n,    s = max(2 500, 4 min(d, 1 024)),    h = h0 d^h1.

These are evaluations of all rows, and products with a sample of `s` rows: they fall to a floor as
`n` grows. Coefficients are non-negative and minimise the relative error; `h1` is the best of a few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True)
class Measurement:
    """One certified solve.

    Attributes:
        n, d, k: rows, features, classes.
        start: "cold" from zero, or "warm" from the checkpoint before.
        seconds: that `fit_probes` took in all.
        passes: over the rows.
        gap: relative to `H(Y)`.
        status: name of the probe's status.
        itemsize: bytes of an entry of the rows.
    """

    n: int
    d: int
    k: int
    start: str
    seconds: float
    passes: float
    gap: float
    status: str
    itemsize: int

    @property
    def flops(self) -> float:
        """Flop/s: the operations in products of its passes, over the seconds of the solve."""
        return self.passes * 4.0 * self.n * self.d * self.k / self.seconds

    @property
    def bandwidth(self) -> float:
        """Bytes/s: the bytes of rows that its passes read, over the seconds of the solve."""
        return self.passes * self.n * self.d * self.itemsize / self.seconds


@dataclass(frozen=True)
class CostModel:
    """Coefficients of the model in the module's docstring.

    Attributes:
        seconds: `a, b, c, e, f`.
        passes: `g, h0, h1`.
    """

    seconds: tuple[float, ...]
    passes: tuple[float, float, float]

    @classmethod
    def fit(cls, solves: Sequence[Measurement], flops: float) -> CostModel:
        """Fit to at least five solves, all cold or all warm; products reach `flops`/s at most.

        Raises:
            ValueError: fewer than five solves.
        """
        if len(solves) < 5:
            raise ValueError(f"expected at least five measurements, found {len(solves)}")
        terms = np.stack([_terms(m.n, m.d, m.k, m.passes) for m in solves])
        measured = np.asarray([m.seconds for m in solves])
        least = 4.0 / flops * terms[:, 0]
        slower, _ = nnls(terms / measured[:, None], 1.0 - least / measured)
        seconds = slower + np.asarray([4.0 / flops, 0.0, 0.0, 0.0, 0.0])
        passes = np.asarray([m.passes for m in solves])
        ratio = np.asarray([sample_rows(m.d) / m.n for m in solves])
        d = np.asarray([float(m.d) for m in solves])
        best, worst = (0.0, 0.0, 0.0), np.inf
        for exponent in np.linspace(0.0, 1.5, 16).tolist():
            (g, h), error = _relative(np.stack([np.ones(len(d)), ratio * d**exponent], 1), passes)
            if error < worst:
                best, worst = (float(g), float(h), exponent), error
        return cls(tuple(seconds.tolist()), best)

    def expected_passes(self, n: int, d: int) -> float:
        """Predict the passes to the certificate."""
        g, h, exponent = self.passes
        return g + h * float(d) ** exponent * sample_rows(d) / n

    def expected_seconds(self, n: int, d: int, k: int, passes: float | None = None) -> float:
        """Predict the seconds of a solve with `passes`, by default the expected ones."""
        passes = self.expected_passes(n, d) if passes is None else passes
        return float(_terms(n, d, k, passes) @ np.asarray(self.seconds))

    def errors(self, solves: Sequence[Measurement]) -> list[tuple[float, float]]:
        """Return predicted over measured of each solve: seconds given its passes, and passes."""
        return [
            (
                self.expected_seconds(m.n, m.d, m.k, m.passes) / m.seconds,
                self.expected_passes(m.n, m.d) / m.passes,
            )
            for m in solves
        ]


def sample_rows(d: int) -> int:
    """Return how many rows `newton-cg` and `lbfgs` sample at first, if there are many rows."""
    return max(2500, 4 * min(d, 1024))


def _relative(terms: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the non-negative coefficients of least relative error, and that error."""
    return nnls(terms / values[:, None], np.ones(len(values)))


def _terms(n: int, d: int, k: int, passes: float) -> np.ndarray:
    """Return what `a, b, c, e, f` are multiplied with."""
    n_d, n_k = float(n) * d, float(n) * k
    return np.asarray([passes * n_d * k, passes * n_k, passes * n_d, float(d) ** 3, 1.0])
