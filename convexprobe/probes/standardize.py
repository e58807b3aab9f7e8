"""Features that are shifted and scaled for a fit, and probes brought back to features as they are.

With means `mu` and deviations `sigma` of the features, a fit sees `u = (x - mu) / sigma` and finds
`V` and `c`. On the rows as they are the same classifier is

    W = V / sigma,    b = c - W mu,    V u + c = W x + b,

and its penalty is `l2/2 ||V||^2 = l2/2 ||W sigma||^2`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from convexprobe.activations.checks import check_finite
from convexprobe.activations.source import Source
from convexprobe.arrays.backend import Array, cast, compute_dtype, like, to_numpy
from convexprobe.arrays.ranks import Communicator
from convexprobe.probes.probe import Probe
from convexprobe.problem.objective import Problem
from convexprobe.solvers.solution import Status
from convexprobe.solvers.starts import Previous


class Standardized(Source):
    """A source of `(x - mean) / scale`, made block by block; the rows stay as they are.

    Args:
        base: the rows as they are kept.
        mean, scale: host `(d,)` float64, numbers that the compute dtype can hold.
    """

    def __init__(self, base: Source, mean: np.ndarray, scale: np.ndarray) -> None:
        self.base, self.n, self.d, self.capacity = base, base.n, base.d, base.capacity
        self.room, self.streamed = base.room, base.streamed
        self.mean, self.scale = mean, scale
        dtype = compute_dtype(base.reference)
        self.reference = cast(base.reference[:0, :], dtype)
        self._mean = like(mean, self.reference, dtype)[None, :]
        self._scale = like(scale, self.reference, dtype)[None, :]

    def blocks(self, columns: int = 0, *, once: bool = False) -> Iterator[tuple[slice, Array]]:
        """The base's blocks, standardized."""
        return ((span, self._standardize(x)) for span, x in self.base.blocks(columns, once=once))

    def spans(self, columns: int) -> Iterator[slice]:
        """The base's spans."""
        return self.base.spans(columns)

    def halve(self) -> bool:
        """Halve the base's blocks."""
        return self.base.halve()

    def take(self, index: Array) -> Array:
        """The base's rows of an index."""
        return self._standardize(self.base.take(index))

    def subset(self, index: np.ndarray) -> Standardized:
        """The rows of a host index as a source of their own."""
        return self.like(self.base.subset(index))

    def like(self, base: Source) -> Standardized:
        """Other rows, shifted and scaled as these are."""
        return Standardized(base, self.mean, self.scale)

    def _standardize(self, x: Array) -> Array:
        out = x - self._mean
        out /= self._scale
        return out

    def start(self, problem: Problem, previous: Previous | None) -> Previous | None:
        """Earlier probes of the rows as they are as starts of a family of these rows."""
        if previous is None:
            return None
        weights, bias = problem.split(previous.w)
        mean = like(self.mean, weights, weights.dtype)
        moved = bias + problem.xp.sum(weights * mean[None, None, :], axis=2)
        scale = like(self.scale, weights, weights.dtype)
        return replace(previous, w=problem.join(weights * scale[None, None, :], moved))

    def hand_out(self, probes: list[Probe], family: Problem, tol: float) -> list[Probe]:
        """The probes in the coordinates of the rows as they are.

        Rounding moves them a little, so what they say of themselves is measured again, in a pass.

        Args:
            probes: of standardized rows, one for each task of the family.
            family: the same tasks on the rows as they are, in float64.
            tol: relative tolerance of the certificate.
        """
        xp, handed, parameters = family.xp, [], []
        for probe in probes:
            weights = to_numpy(probe.weights).astype(np.float64) / self.scale
            bias = to_numpy(probe.bias).astype(np.float64) - weights @ self.mean
            dtype = probe.weights.dtype
            handed.append(
                replace(
                    probe,
                    weights=like(weights, probe.weights, dtype),
                    bias=like(bias, probe.bias, dtype),
                    scale=like(self.scale, probe.weights, dtype),
                )
            )
            absent = family.k - len(probe.classes)
            weights = np.pad(to_numpy(handed[-1].weights), ((0, absent), (0, 0)))
            bias = np.pad(to_numpy(handed[-1].bias), (0, absent))
            bias = np.where(np.isfinite(bias), bias, 0.0)  # the family keeps absent classes out
            parameters.append(np.concatenate([weights.ravel(), bias]).astype(np.float64))
        losses, _, errors = family.judge(xp.stack([like(w, family.moment) for w in parameters]))
        out = []
        for probe, loss, error in zip(handed, losses.tolist(), errors.tolist(), strict=True):
            size = np.sum((to_numpy(probe.weights).astype(np.float64) * self.scale) ** 2)
            objective = loss + 0.5 * probe.l2 * float(size)
            gap = probe.gap + max(objective - probe.objective, 0.0)
            status = probe.status
            if status is Status.CERTIFIED and gap > tol * probe.label_entropy:
                status = Status.ROUNDING
            out.append(
                replace(
                    probe, loss=loss, train_error=error, objective=objective, gap=gap, status=status
                )
            )
        return out


def standardized(
    rows: Source, weights: np.ndarray | None, communicator: Communicator, where: str
) -> Standardized:
    """The rows with features of mean 0 and deviation 1 over all ranks: two readings.

    A feature that is constant is shifted alone.

    Args:
        rows: this rank's rows.
        weights: their weights, host `(rows,)`, or None.
        communicator: the ranks.
        where: what messages call the layer.

    Raises:
        ValueError: values that are not finite, or whose squares are not; on every rank.
    """
    s = np.ones(rows.n) if weights is None else weights
    with np.errstate(over="ignore", invalid="ignore"):
        first, total = communicator.all_reduce(_sum(rows, s, np.zeros(rows.d), 1), s.sum())
        mean = first / total
        (second,) = communicator.all_reduce(_sum(rows, s, mean, 2))
        variance = second / total
        # numbers that the compute dtype holds, so that the way back is the way there
        dtype = compute_dtype(rows.reference)
        scale = np.where(variance > 1e-12 * mean**2, np.sqrt(variance), 1.0)
        mean, scale = (
            to_numpy(like(v, rows.reference, dtype)).astype(np.float64) for v in (mean, scale)
        )
    if not np.isfinite([mean, scale]).all():
        with communicator.raise_together():
            check_finite(rows, where)
        raise ValueError(f"{where}: values so large that their squares overflow; scale them down")
    return Standardized(rows, mean, scale)


def _sum(rows: Source, weights: np.ndarray, centre: np.ndarray, power: int) -> np.ndarray:
    """This rank's weighted sum of powers of the features less the centre, host `(d,)` float64."""
    total = np.zeros(rows.d)
    for span, x in rows.blocks():
        total += weights[span] @ (to_numpy(x).astype(np.float64) - centre) ** power
    return total
