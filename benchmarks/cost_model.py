"""What a solve costs as a function of its size, fitted to measurements and judged on others.

Seconds are modelled as

    passes (a n d k + b n k + c n d) + e d^3 + f,

products with the rows; softmax and line search on logits; reading the rows; the preconditioner;
and what does not depend on size. The coefficients are non-negative and minimise the relative error.
Passes to the certificate are modelled as `exp(c0) d^c1 k^c2`, and the exponent of `n` is fitted
beside them to show that it is near zero.
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
        passes: `c0, c1, c2`.
        rows_exponent: of `n`, fitted beside the others.
    """

    seconds: tuple[float, ...]
    passes: tuple[float, ...]
    rows_exponent: float

    @classmethod
    def fit(cls, found: Sequence[Measurement]) -> CostModel:
        """To solves of one kind of start; at least five.

        Raises:
            ValueError: fewer.
        """
        if len(found) < 5:
            raise ValueError(f"expected at least five measurements, found {len(found)}")
        seconds = np.asarray([m.seconds for m in found])
        terms = np.stack([_terms(m.n, m.d, m.k, m.passes) for m in found])
        coefficients, _ = nnls(terms / seconds[:, None], np.ones(len(found)))
        logs = np.log([[np.e, m.d, m.k, m.n] for m in found])
        passes = np.log([m.passes for m in found])
        three, *_ = np.linalg.lstsq(logs[:, :3], passes)
        four, *_ = np.linalg.lstsq(logs, passes)
        return cls(tuple(coefficients.tolist()), tuple(three.tolist()), float(four[3]))

    def expected_passes(self, d: int, k: int) -> float:
        """Passes to the certificate."""
        c0, c1, c2 = self.passes
        return float(np.exp(c0) * d**c1 * k**c2)

    def expected_seconds(self, n: int, d: int, k: int, passes: float | None = None) -> float:
        """Seconds, with the passes expected unless they are given."""
        passes = self.expected_passes(d, k) if passes is None else passes
        return float(_terms(n, d, k, passes) @ np.asarray(self.seconds))

    def errors(self, found: Sequence[Measurement]) -> list[tuple[float, float]]:
        """Of each solve, predicted over measured: seconds at its own passes, and passes."""
        return [
            (
                self.expected_seconds(m.n, m.d, m.k, m.passes) / m.seconds,
                self.expected_passes(m.d, m.k) / m.passes,
            )
            for m in found
        ]


def _terms(n: int, d: int, k: int, passes: float) -> np.ndarray:
    n_d, n_k = float(n) * d, float(n) * k
    return np.asarray([passes * n_d * k, passes * n_k, passes * n_d, float(d) ** 3, 1.0])
