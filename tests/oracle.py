"""The oracle: random tasks and their optima from the definition, in plain float64 NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from hypothesis import strategies as st

from convexprobe.activations.source import Rows
from convexprobe.problem.objective import Problem


@dataclass(frozen=True)
class Data:
    """One task in NumPy: rows `x` `(n, d)`, labels `y` `(n,)`, `k` classes, weights or None."""

    x: np.ndarray
    y: np.ndarray
    k: int
    weights: np.ndarray | None = None

    def problem(
        self, l2: Any, xp: ModuleType = np, dtype: Any = np.float64, *, bias: bool = True
    ) -> Problem:
        """The same data as a `Problem` of another library."""
        weights = None if self.weights is None else xp.asarray(self.weights)
        x = xp.asarray(self.x.astype(dtype))
        y = xp.asarray(self.y)
        return Problem(Rows(x), y, l2, classes=self.k, weights=weights, bias=bias)

    @property
    def label_entropy(self) -> float:
        """`H(Y)` in nats."""
        s = np.ones(len(self.y)) if self.weights is None else self.weights
        f = np.bincount(self.y, s) / s.sum()
        return float(-np.sum(f[f > 0] * np.log(f[f > 0])))


def random_data(
    n: int, d: int, k: int, seed: int = 0, *, weighted: bool = False, skew: float = 0.0
) -> Data:
    """Gaussian rows, labels drawn from a random linear model, every class present.

    `skew` lowers the bias of each further class, so that the last ones become rare.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) + rng.standard_normal(d)
    z = x @ rng.standard_normal((d, k)) - skew * np.arange(k)
    y = (z + rng.gumbel(size=(n, k))).argmax(axis=1)
    y[rng.permutation(n)[:k]] = np.arange(k)
    weights = rng.exponential(size=n) * (rng.random(n) > 0.1) if weighted else None
    if weights is not None:
        weights[[np.flatnonzero(y == c)[0] for c in range(k)]] += 0.1
    return Data(x, y, k, weights)


tasks = st.builds(
    random_data,
    n=st.integers(5, 60),
    d=st.integers(1, 8),
    k=st.integers(2, 5),
    seed=st.integers(0, 9999),
    weighted=st.booleans(),
    skew=st.sampled_from([0.0, 1.0, 3.0]),
)
"""Small tasks of every kind, for properties that hold of all of them."""


def reference(data: Data, w: np.ndarray, l2: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient `(p,)` and per-row Hessian factors of the objective, from its definition.

    The factors are the probabilities `(n, k)`; `dense_hessian` makes the matrix of them. Parameters
    without biases have their own gradient, in which the biases are 0.
    """
    n, d = data.x.shape
    s = np.ones(n) if data.weights is None else data.weights
    present = np.bincount(data.y, s, minlength=data.k) > 0
    free = w.size > data.k * d
    weights, bias = w[: data.k * d].reshape(data.k, d), w[data.k * d :] if free else 0.0
    z = np.where(present, data.x @ weights.T + bias, -np.inf)
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    counted = s > 0  # a row of weight 0 may have a class that is absent
    loss = -np.sum(s[counted] * log_p[np.arange(n), data.y][counted]) / s.sum()
    p = np.exp(log_p)
    r = (p - np.eye(data.k)[data.y]) * (s / s.sum())[:, None]
    gradient = np.concatenate([(r.T @ data.x + l2 * weights).ravel(), r.sum(axis=0)])
    gradient = gradient[: w.size]
    return float(loss + 0.5 * l2 * np.sum(weights**2)), gradient, p


def dense_hessian(data: Data, p: np.ndarray, l2: float) -> np.ndarray:
    """The Hessian `(p, p)` where the rows have probabilities `p` `(n, k)`."""
    n, d = data.x.shape
    k = data.k
    s = np.ones(n) if data.weights is None else data.weights
    v = p[:, :, None] * (np.eye(k) - p[:, None, :]) * (s / s.sum())[:, None, None]
    x1 = np.concatenate([data.x, np.ones((n, 1))], axis=1)
    full = np.einsum("nab,ni,nj->aibj", v, x1, x1, optimize=True)
    out = np.zeros((k * (d + 1), k * (d + 1)))
    cut = k * d
    out[:cut, :cut] = full[:, :d, :, :d].reshape(cut, cut) + l2 * np.eye(cut)
    out[:cut, cut:] = full[:, :d, :, d].reshape(cut, k)
    out[cut:, :cut] = out[:cut, cut:].T
    out[cut:, cut:] = full[:, d, :, d]
    return out


def minimum(data: Data, l2: float, *, bias: bool = True) -> tuple[np.ndarray, float]:
    """The optimum `w` `(p,)` and `F*` by damped Newton on the dense Hessian: the oracle.

    Shares nothing with the package. Fails rather than return an unconverged point: the Newton
    decrement bounds what is left, to second order, and must reach 1e-11.
    """
    w = np.zeros(data.k * (data.x.shape[1] + bias))
    value, gradient, p = reference(data, w, l2)
    decrement = np.inf
    for _ in range(200):
        hessian = dense_hessian(data, p, l2)[: w.size, : w.size]
        # Singular along equal biases, and so is the gradient: any small ridge will do.
        ridge = np.diag(1e-13 * (1.0 + np.abs(np.diag(hessian))))
        step = np.linalg.solve(hessian + ridge, gradient)
        decrement = float(gradient @ step) / 2
        t, new = 1.0, reference(data, w - step, l2)
        while not new[0] <= value - 1e-4 * t * 2 * decrement and t > 1e-8:
            t *= 0.5
            new = reference(data, w - t * step, l2)
        if not new[0] < value:
            break
        w = w - t * step
        value, gradient, p = new
        if decrement < 1e-16:
            break
    assert decrement < 1e-11, f"the oracle did not converge: {decrement}"
    return w, value
