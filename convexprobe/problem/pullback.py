"""The adjoint of a family's product with rows: what residuals make of them."""

from __future__ import annotations

from convexprobe.arrays.backend import Array, cast
from convexprobe.arrays.products import combine_rows
from convexprobe.problem.linear_model import LinearModel

_FLUSH = 2048
"""Rows whose products add up in the compute dtype before float64 takes over."""


class Pullback:
    """The sum `sum_i R_i [x_i; 1]^T` over blocks of rows.

    The weights' part adds up in the compute dtype over at most `_FLUSH` rows and then in float64:
    with blocks of few rows, adding each in float64 would cost as much as the products.
    """

    def __init__(self, problem: LinearModel, m: int) -> None:
        self.problem, self.m, self.rows = problem, m, 0
        self.columns = 1 if problem.k == 2 else problem.k  # of two classes one says all
        self.part: Array = None
        self.weights: Array = 0.0
        self.bias: Array = 0.0

    def add(self, residual: Array, x: Array) -> None:
        """Add a block: residuals `(m, k, r)` that sum to 0 over the classes, and rows `(r, d)`.

        Of two classes the second's alone, `(m, 1, r)`, will do.
        """
        xp, k = self.problem.xp, self.columns
        self.problem.count_rows(x.shape[0])
        columns = residual[:, -k:, :]
        flat = combine_rows(xp.reshape(columns, (self.m * k, x.shape[0])), x)
        self.bias = self.bias + cast(xp.sum(columns, axis=2), xp.float64)
        if self.part is None:
            self.part = flat
        else:
            self.part += flat
        self.rows += x.shape[0]
        if self.rows >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if self.part is not None:
            self.weights = self.weights + cast(self.part, self.problem.xp.float64)
        self.part, self.rows = None, 0

    def value(self) -> Array:
        """The sum so far, `(m, p)` float64."""
        self._flush()
        xp = self.problem.xp
        weights, bias = xp.reshape(self.weights, (self.m, self.columns, self.problem.d)), self.bias
        if self.columns == 1:
            weights, bias = xp.concat([-weights, weights], axis=1), xp.concat([-bias, bias], axis=1)
        return self.problem.join(weights, bias)


def pullback(problem: LinearModel, residual: Array, x: Array) -> Array:
    """`sum_i R_i [x_i; 1]^T`, `(m, p)` float64; residuals `(m, k, r)` sum to 0 over classes."""
    total = Pullback(problem, residual.shape[0])
    total.add(residual, x)
    return total.value()
