"""Preconditioners: approximate inverses of the Hessian, built from a sample of rows.

`Curvature` uses one matrix for all classes and tasks. Let `h_i = (1 - sum_k P_ik^2)/(k-1)`, so that
`h_i (I - 11^T/k)` stands for `diag P_i - P_i P_i^T`, and average `h` over the tasks:

    C = sum_i h_i (x_i - xbar)(x_i - xbar)^T,    xbar = sum_i h_i x_i / sum_i h_i.

Every class of task `t` gets `(a_t C + l2_t I)^-1`, where `a_t` is the task's own sum of `h` over
the average's; the bias decouples in the centred coordinates (without biases, `xbar = 0`). (Bohning
1992 has `h = 1/2`; the rows' own `h` makes it good near a solution.) If one eigendecomposition
serves all tasks, a scale for each class costs nothing more: `a_tc`, with
`P_ic (1 - P_ic) k / (k-1)` for `h_i`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from convexprobe.arrays.backend import Array, beside, cast, generator
from convexprobe.arrays.linalg import eigh, inverse_spd
from convexprobe.arrays.products import combine_rows, dot_rows
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_sample import Sample, draw_rows
from convexprobe.problem.tasks import PerTask, take_tasks

UNSEEN = 0.4
"""With more than two classes, the curvature of what a sketch leaves out in units of the harmonic
mean of what it met."""


class Inverse(Protocol):
    """A symmetric positive definite approximation of the inverse Hessian."""

    def solve(self, v: Array) -> Array:
        """Apply it to `v`, `(m, p)`."""


class Preconditioner(Protocol):
    """A way to build an `Inverse` from a sample."""

    def build(self, sample: Sample) -> Inverse:
        """The approximation at the point where the sample was evaluated."""


@dataclass(frozen=True)
class Identity:
    """No preconditioning."""

    def build(self, sample: Sample) -> Inverse:
        """The identity, whatever the sample."""
        return _Diagonal(sample.problem.xp.ones_like(sample.problem.l2)[:, None])


@dataclass(frozen=True)
class Diagonal:
    """The inverse of the sampled Hessian's own diagonal."""

    def build(self, sample: Sample) -> Inverse:
        """One weighted product of squared features."""
        problem = sample.problem
        curvature = sample.p * (1.0 - sample.p) * sample.weight[:, None, :]
        xp, (m, k, s) = problem.xp, curvature.shape
        flat = xp.reshape(curvature, (m * k, s))
        weights, bias = problem.all_reduce(
            cast(flat @ (sample.x * sample.x), xp.float64),
            xp.sum(curvature, axis=2, dtype=xp.float64),
        )
        weights = xp.reshape(weights, (m, k, problem.d))
        diagonal = problem.join(weights + problem.l2[:, None, None], bias)
        floor = 1e-12 * xp.max(diagonal, axis=1, keepdims=True) + 1e-300
        return _Diagonal(1.0 / xp.maximum(diagonal, floor))


@dataclass(frozen=True)
class _Diagonal:
    inverse: Array

    def solve(self, v: Array) -> Array:
        return v * self.inverse


@dataclass(frozen=True)
class Curvature:
    """The shared curvature: a dense matrix for few features, of low rank for many.

    `docs/decisions/preconditioner.md` has the measurements behind the defaults.

    Attributes:
        rank: features up to which `C` is formed; with more, so many rows represent it.
        tasks: tasks up to which each has an inverse of its own; more share an eigendecomposition.
        classes: classes up to which they share a scale; more share an eigendecomposition.
        damping: how many times the mean eigenvalue that `C` has at the constant classifier is added
            to `l2`: where losses are far from quadratic, directions that seem flat are not.
    """

    rank: int = 1024
    tasks: int = 3
    classes: int = 256
    damping: float = 0.0

    def build(self, sample: Sample) -> Inverse:
        """O(s d^2 + d^3) flops dense; O(r^2 d + r^3) with `r` rows in low rank (Woodbury).

        Directions that `r` rows leave out, if there are more, have more curvature than `l2`: they
        get the harmonic mean of the eigenvalues met, which lies at the low end of the spectrum, or
        `UNSEEN` of it where classes have curvatures of their own.
        """
        problem, xp, f64 = sample.problem, sample.problem.xp, sample.problem.xp.float64
        low = problem.d > min(self.rank, sample.rows)
        x, p, weight = sample.x, sample.p, sample.weight
        thinned = low and min(self.rank, sample.rows) < problem.n
        if low and sample.rows > self.rank:  # as few rows, drawn where the curvature is
            index, inverse_probability = draw_rows(
                1.0 - xp.sum(p * p, axis=1), weight, self.rank, generator(0), problem.communicator
            )
            kept = beside(index, x)
            x, p = xp.take(x, kept, axis=0), xp.take(p, kept, axis=2)
            inclusion = cast(beside(inverse_probability, x), problem.dtype)
            weight = xp.take(weight, kept, axis=1) * inclusion
        whole, part = problem.all_reduce(xp.sum(sample.weight, axis=1), xp.sum(weight, axis=1))
        weight = weight * (whole / part)[:, None]
        shared, mass = self.row_curvature(problem, p, weight)
        mass, total, mean = problem.all_reduce(
            mass, xp.sum(shared, dtype=f64), cast(shared @ x, f64)
        )
        mass = xp.maximum(mass, 1e-12 * xp.max(mass) + 1e-300)
        total = total + 1e-300
        mean = problem.centre(mean / total)
        size = xp.sqrt(shared)[:, None]
        root = x - cast(mean, problem.dtype)
        root *= size  # in place: memory that is new has to be mapped
        if low:
            root, size = (problem.communicator.all_gather(part) for part in (root, size))
            gram = cast(root @ root.T, f64)
            if problem.bias and gram.shape[0]:
                # Centring leaves `root^T size = 0`, so that nothing is changed by giving that
                # direction a mean eigenvalue: with none it would be most of a harmonic mean.
                size = cast(size, f64) / xp.sqrt(xp.sum(cast(size, f64) ** 2) + 1e-300)
                gram = gram + xp.mean(xp.linalg.diagonal(gram)) * (size @ size.T)
        else:
            (gram,) = problem.all_reduce(cast(root.T @ root, f64))
        eye = xp.eye(gram.shape[0], dtype=f64, device=gram.device)
        # The floor keeps l2 = 0 invertible, and rounding out of directions that no row has. The
        # low-rank form subtracts, which in float32 cancels below it.
        trace = xp.sum(gram * eye) / problem.d
        share = xp.full_like(problem.l2, 1e-5 if low else 1e-10)
        floor = xp.where(problem.l2 > 0, share, 1e-5) * trace + 1e-200
        ridge = xp.maximum(problem.l2 + self._damped(sample), floor)
        shape = _Shape(problem, mass / total, ridge, mean, mass)
        if self._is_spectral(problem):
            return _spectral(shape, gram, root if low else None, thinned=thinned)
        scaled = shape.scale[:, :, None] * gram[None, :, :]
        inner = inverse_spd(scaled + ridge[:, None, None] * eye[None, :, :])
        if thinned and gram.shape[0]:
            harmonic = gram.shape[0] / xp.sum(inner * eye[None, :, :], axis=(1, 2))
            ridge = xp.maximum(ridge, _unseen(problem) * harmonic)
            inner = inverse_spd(scaled + ridge[:, None, None] * eye[None, :, :])
        inner = 0.5 * (inner + xp.matrix_transpose(inner))
        return _Inner(replace(shape, ridge=ridge), inner, root if low else None)

    def _damped(self, sample: Sample) -> Array | float:
        """What is added to the penalties, `(m,)`."""
        if self.damping == 0.0:
            return 0.0
        problem, xp, f64 = sample.problem, sample.problem.xp, sample.problem.xp.float64
        weight, x = xp.mean(sample.weight, axis=0), sample.x
        total, mean = problem.all_reduce(xp.sum(weight, dtype=f64), cast(weight @ x, f64))
        centred = x - cast(mean / total, x.dtype)
        (square,) = problem.all_reduce(cast(weight @ (centred * centred), f64))
        h = (1.0 - xp.sum(problem.frequency**2, axis=1)) / (problem.k - 1)
        return self.damping * h * xp.mean(square / total)

    def row_curvature(self, problem: Problem, p: Array, weight: Array) -> tuple[Array, Array]:
        """This rank's `h_i` averaged over the tasks, `(s,)`, and each task's own sum of it, `(m,
        1)`, or `(m, k)` if classes have a scale of their own.

        Args:
            problem: the family.
            p: probabilities of the rows, `(m, k, s)`.
            weight: of the rows, `(m or 1, s)`.
        """
        xp, k = problem.xp, problem.k
        h = xp.clip((1.0 - xp.sum(p * p, axis=1)) / (k - 1), 0.0, None) * weight
        if self._is_spectral(problem):
            own = p[:, : 1 if k == 2 else k, :]  # both of two classes have the same
            mass = xp.sum(own * (1.0 - own) * weight[:, None, :], axis=2, dtype=xp.float64)
            mass = mass * (k / (k - 1))
        else:
            mass = xp.sum(h, axis=1, dtype=xp.float64)[:, None]
        return xp.mean(h, axis=0), mass

    def _is_spectral(self, problem: Problem) -> bool:
        return problem.m > self.tasks or problem.k > self.classes


def _unseen(problem: Problem) -> float:
    return 1.0 if problem.k == 2 else UNSEEN


def _spectral(shape: _Shape, gram: Array, root: Array | None, *, thinned: bool) -> _Spectral:
    """All tasks' inverses from one eigendecomposition of `gram`: `C`, or `root root^T` in low rank.

    There `C = V diag(lambda) V^T` with `V = root^T U lambda^-1/2`; eigenvalues that are rounding
    are left to the ridge.
    """
    xp = shape.problem.xp
    values, basis = eigh(gram)
    values = xp.clip(values, 0.0, None)
    spectrum = shape.scale[:, :, None] * values
    if thinned:
        harmonic = 1.0 / xp.mean(1.0 / (spectrum + shape.ridge[:, None, None]), axis=(1, 2))
        unseen = _unseen(shape.problem) * harmonic
        shape = replace(shape, ridge=xp.maximum(shape.ridge, unseen))
    factor = 1.0 / (spectrum + shape.ridge[:, None, None])
    rest = xp.zeros_like(shape.ridge)
    if root is not None:
        rest = 1.0 / shape.ridge
        real = values > 1e-6 * xp.max(values)
        basis = cast(root.T, values.dtype) @ (basis / xp.sqrt(xp.where(real, values, 1.0)))
        factor = xp.where(real, factor - rest[:, None, None], 0.0)
    dtype = shape.problem.dtype  # products in float64 take twice as long
    factor = cast(xp.clip(factor, -1e30, 1e30), dtype)  # finite without curvature and penalty, too
    return _Spectral(shape, cast(basis, dtype), factor, rest)


@dataclass(frozen=True)
class _Shape(PerTask):
    """What every form of the inverse shares: the tasks, and coordinates that decouple the bias."""

    problem: Problem
    scale: Array  # a, (m, 1), or (m, k) if classes have their own
    ridge: Array  # (m,)
    mean: Array  # (d,)
    mass: Array  # (m, 1) or (m, k): curvature of one bias

    def solve(self, v: Array, inside: Callable[[Array], Array]) -> Array:
        """Apply an inverse, given on weights `(m, c, d)` in the centred coordinates, to `v`.

        Of two classes half the difference alone is multiplied with rows, `c` = 1. What they share
        changes no probability: it has no curvature but the penalty's.
        """
        weights, bias = self.problem.split(v)
        if two := self.problem.k == 2:
            both = 0.5 * (weights[:, 1:, :] + weights[:, :1, :])
            weights, bias = weights[:, 1:, :] - both, 0.5 * (bias[:, 1:] - bias[:, :1])
        out = inside(weights - bias[:, :, None] * self.mean)
        bias = bias / self.mass - out @ self.mean
        if two:
            xp, both = self.problem.xp, both / self.ridge[:, None, None]
            out = xp.concat([both - out, both + out], axis=1)
            bias = xp.concat([-bias, bias], axis=1)
        return self.problem.join(out, bias)

    def take_tasks(self, index: list[int]) -> _Shape:
        keep = {name: take_tasks(getattr(self, name), index) for name in ("scale", "ridge", "mass")}
        return replace(self, problem=self.problem.take_tasks(index), **keep)


@dataclass(frozen=True)
class _Inner(PerTask):
    """An inverse for each task."""

    shape: _Shape
    inner: Array  # (m, d, d), or (m, r, r) beside root
    root: Array | None  # (r, d): C = root^T root

    def solve(self, v: Array) -> Array:
        return self.shape.solve(v, self._inside)

    def _inside(self, centred: Array) -> Array:
        root, (m, c, d) = self.root, centred.shape
        if root is None:
            return centred @ self.inner
        xp, f64 = self.shape.problem.xp, centred.dtype
        t = dot_rows(cast(xp.reshape(centred, (m * c, d)), root.dtype), root)
        t = cast(xp.reshape(t, (m, c, -1)), f64) @ self.inner
        scaled = cast(t * self.shape.scale[:, :, None], root.dtype)
        back = combine_rows(xp.reshape(scaled, (m * c, -1)), root)
        back = cast(xp.reshape(back, centred.shape), f64)
        return (centred - back) / self.shape.ridge[:, None, None]

    def take_tasks(self, index: list[int]) -> _Inner:
        return _Inner(take_tasks(self.shape, index), take_tasks(self.inner, index), self.root)


@dataclass(frozen=True)
class _Spectral(PerTask):
    """`rest + basis diag(factor) basis^T`: one basis for every task."""

    shape: _Shape
    basis: Array  # (d, r)
    factor: Array  # (m, k, r)
    rest: Array  # (m,)

    def solve(self, v: Array) -> Array:
        return self.shape.solve(v, self._inside)

    def _inside(self, centred: Array) -> Array:
        xp, (m, c, d) = self.shape.problem.xp, centred.shape
        # Flat: one product with all rows, as m small ones would wait for memory.
        flat = cast(xp.reshape(centred, (m * c, d)), self.basis.dtype)
        t = xp.reshape(flat @ self.basis, (m, c, -1)) * self.factor
        t = cast(xp.reshape(t, (m * c, -1)) @ self.basis.T, centred.dtype)
        return xp.reshape(t, (m, c, d)) + self.rest[:, None, None] * centred

    def take_tasks(self, index: list[int]) -> _Spectral:
        shape, factor, rest = take_tasks([self.shape, self.factor, self.rest], index)
        return _Spectral(shape, self.basis, factor, rest)
