"""What a solve costs as a function of its size, fitted to measurements and judged on others.

Seconds are modelled as

    passes (a n d k + b n k + c n d) + e d^3 + f,

products with the rows; softmax and line search on logits; reading the rows; the preconditioner;
and what does not depend on size; `a` is at least what the products take at the ceiling measured
beside them, without which a fit to small sizes promises more than the device can. Passes to the
certificate are modelled as

    g + h s / n,    s = max(2 500, 4 min(d, 1 024)),    h = h0 d^h1,

evaluations of all rows and products with a sample of `s` of them: they fall with `n` to a floor.
Coefficients are non-negative and minimise the relative error; `h1` is the best of a few.
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
        start: "cold", or "warm" from the checkpoint before.
        seconds: of `fit_probes`, everything included.
        passes: over the rows.
        gap: relative to `H(Y)`.
        status: of the probe.
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
        """Floating-point operations of its passes' products, a second of the whole solve."""
        return self.passes * 4.0 * self.n * self.d * self.k / self.seconds

    @property
    def bandwidth(self) -> float:
        """Bytes of rows read by its passes, a second of the whole solve."""
        return self.passes * self.n * self.d * self.itemsize / self.seconds


@dataclass(frozen=True)
class CostModel:
    """The fit; see the module's docstring.

    Attributes:
        seconds: `a, b, c, e, f`.
        passes: `g, h0, h1`.
    """

    seconds: tuple[float, ...]
    passes: tuple[float, float, float]

    @classmethod
    def fit(cls, found: Sequence[Measurement], flops: float) -> CostModel:
        """To solves of one kind of start, at least five; products reach at most `flops` a second.

        Raises:
            ValueError: fewer.
        """
        if len(found) < 5:
            raise ValueError(f"expected at least five measurements, found {len(found)}")
        terms = np.stack([_terms(m.n, m.d, m.k, m.passes) for m in found])
        measured = np.asarray([m.seconds for m in found])
        least = 4.0 / flops * terms[:, 0]
        slower, _ = nnls(terms / measured[:, None], 1.0 - least / measured)
        seconds = slower + np.asarray([4.0 / flops, 0.0, 0.0, 0.0, 0.0])
        passes = np.asarray([m.passes for m in found])
        ratio = np.asarray([sample_rows(m.d) / m.n for m in found])
        d = np.asarray([float(m.d) for m in found])
        best, worst = (0.0, 0.0, 0.0), np.inf
        for exponent in np.linspace(0.0, 1.5, 16).tolist():
            (g, h), error = _relative(np.stack([np.ones(len(d)), ratio * d**exponent], 1), passes)
            if error < worst:
                best, worst = (float(g), float(h), exponent), error
        return cls(tuple(seconds.tolist()), best)

    def expected_passes(self, n: int, d: int) -> float:
        """Passes to the certificate."""
        g, h, exponent = self.passes
        return g + h * float(d) ** exponent * sample_rows(d) / n

    def expected_seconds(self, n: int, d: int, k: int, passes: float | None = None) -> float:
        """Seconds, with the passes expected unless they are given."""
        passes = self.expected_passes(n, d) if passes is None else passes
        return float(_terms(n, d, k, passes) @ np.asarray(self.seconds))

    def errors(self, found: Sequence[Measurement]) -> list[tuple[float, float]]:
        """Of each solve, predicted over measured: seconds at its own passes, and passes."""
        return [
            (
                self.expected_seconds(m.n, m.d, m.k, m.passes) / m.seconds,
                self.expected_passes(m.n, m.d) / m.passes,
            )
            for m in found
        ]


def sample_rows(d: int) -> int:
    """Rows that `newton-cg` and `lbfgs` sample at first, at most a quarter of many."""
    return max(2500, 4 * min(d, 1024))


def _relative(terms: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Non-negative coefficients of the terms, and the relative error they leave."""
    return nnls(terms / values[:, None], np.ones(len(values)))


def _terms(n: int, d: int, k: int, passes: float) -> np.ndarray:
    n_d, n_k = float(n) * d, float(n) * k
    return np.asarray([passes * n_d * k, passes * n_k, passes * n_d, float(d) ** 3, 1.0])
