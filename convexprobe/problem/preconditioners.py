"""Preconditioners: approximate inverses of the Hessian, built from a sample of rows.

`Curvature` uses one matrix for all classes and tasks. With `h_i = (1 - sum_k P_ik^2)/(k-1)`, which
replaces `diag P_i - P_i P_i^T` by `h_i (I - 11^T/k)`, and `h` averaged over the tasks,

    C = sum_i h_i (x_i - xbar)(x_i - xbar)^T,    xbar = sum_i h_i x_i / sum_i h_i,

task `t` is given `(a_t C + l2_t I)^-1` for every class, `a_t` its own mean of `h` relative to the
average; the bias decouples in the centred coordinates. (Bohning 1992 has `h = 1/2` throughout; the
rows' own `h` is what makes it good near a solution.) Where one eigendecomposition serves them all,
each class has a scale of its own for nothing: `a_tc` with `P_ic (1 - P_ic) k / (k-1)` for `h_i`,
whose mean over the classes is `a_t`; of a thousand classes some are far rarer than others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from convexprobe.arrays.backend import Array, cast
from convexprobe.arrays.linalg import inverse_spd
from convexprobe.problem.objective import Problem
from convexprobe.problem.row_sample import Sample
from convexprobe.problem.tasks import PerTask, take_tasks


class Inverse(Protocol):
    """A symmetric positive definite approximation of the inverse Hessian."""

    def solve(self, v: Array) -> Array:
        """Apply it to `v`, `(m, p)`."""


class Preconditioner(Protocol):
    """A recipe for an `Inverse`."""

    def build(self, sample: Sample) -> Inverse:
        """The approximation at the point where the sample was evaluated."""


@dataclass(frozen=True)
class Identity:
    """No preconditioning."""

    def build(self, sample: Sample) -> Inverse:
        """The identity, whatever the sample."""
        l2 = sample.problem.l2
        return _Diagonal(sample.problem.xp.ones_like(l2)[:, None])


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
        floor = 1e-12 * problem.xp.max(diagonal, axis=1, keepdims=True) + 1e-300
        return _Diagonal(1.0 / problem.xp.maximum(diagonal, floor))


@dataclass(frozen=True)
class _Diagonal:
    inverse: Array

    def solve(self, v: Array) -> Array:
        return v * self.inverse


@dataclass(frozen=True)
class Curvature:
    """The shared curvature matrix: dense while it is small, of the sample's rank beyond.

    Attributes:
        rank: features up to which `C` is formed, and rows that represent it beyond.
        tasks: tasks up to which each gets an inverse of its own; beyond, one eigendecomposition
            serves all.
        classes: classes beyond which one eigendecomposition gives each a scale of its own.

    The defaults are measured in `docs/decisions/preconditioner.md`.
    """

    rank: int = 1024
    tasks: int = 3
    classes: int = 256

    def build(self, sample: Sample) -> Inverse:
        """O(s d^2 + d^3) dense; O(r^2 d + r^3) with `r` rows in low rank (Woodbury).

        Directions that `r` of the `s` rows leave out have more curvature than `l2`: they are given
        the harmonic mean of the eigenvalues met, which sits at the low end of the spectrum.
        """
        problem, xp = sample.problem, sample.problem.xp
        f64 = xp.float64
        s = sample.rows
        low = problem.d > min(self.rank, s)
        stride = -(-s // self.rank) if low else 1
        thin = slice(-sample.own.start % stride, None, stride)  # of the rows of all ranks
        x, p, weight = sample.x[thin, :], sample.p[:, :, thin], sample.weight[:, thin]
        whole, part = problem.all_reduce(xp.sum(sample.weight, axis=1), xp.sum(weight, axis=1))
        weight = weight * (whole / part)[:, None]
        shared, mass = self.row_curvature(problem, p, weight)
        mass, total, mean = problem.all_reduce(
            mass, xp.sum(shared, dtype=f64), cast(shared @ x, f64)
        )
        mass = xp.maximum(mass, 1e-12 * xp.max(mass) + 1e-300)
        total = total + 1e-300
        mean = mean / total
        root = (x - cast(mean, problem.dtype)) * xp.sqrt(shared)[:, None]
        if low:
            root = problem.communicator.all_gather(root)
            gram = cast(root @ root.T, f64)
        else:
            (gram,) = problem.all_reduce(cast(root.T @ root, f64))
        eye = xp.eye(gram.shape[0], dtype=f64, device=gram.device)
        # Keeps l2 = 0 invertible; the low-rank form subtracts, and cancels in float32 below this.
        # Without a penalty only the floor keeps rounding out of directions that no row has.
        trace = xp.sum(gram * eye) / problem.d
        share = xp.full_like(problem.l2, 1e-5 if low else 1e-10)
        floor = xp.where(problem.l2 > 0, share, 1e-5) * trace + 1e-200
        ridge = xp.maximum(problem.l2, floor)
        shape = _Shape(problem, mass / total, ridge, mean, mass)
        if self._is_spectral(problem):
            return _spectral(shape, gram, root if low else None, thinned=stride > 1)
        a = shape.scale[:, :, None]
        inner = inverse_spd(a * gram[None, :, :] + ridge[:, None, None] * eye[None, :, :])
        if stride > 1:
            harmonic = gram.shape[0] / xp.sum(inner * eye[None, :, :], axis=(1, 2))
            ridge = xp.maximum(ridge, 0.5 * harmonic)
            inner = inverse_spd(a * gram[None, :, :] + ridge[:, None, None] * eye[None, :, :])
        inner = 0.5 * (inner + xp.matrix_transpose(inner))
        return _Inner(replace(shape, ridge=ridge), inner, root if low else None)

    def row_curvature(self, problem: Problem, p: Array, weight: Array) -> tuple[Array, Array]:
        """`h_i` averaged over the tasks, `(s,)`, and each task's own sum of it, `(m, 1)`, or
        `(m, k)` where classes have a scale of their own; of this rank's rows.

        Args:
            problem: the family.
            p: probabilities of the rows, `(m, k, s)`.
            weight: what they count, `(m or 1, s)`.
        """
        xp, k = problem.xp, problem.k
        h = xp.clip((1.0 - xp.sum(p * p, axis=1)) / (k - 1), 0.0, None) * weight
        if self._is_spectral(problem):
            mass = xp.sum(p * (1.0 - p) * weight[:, None, :], axis=2, dtype=xp.float64)
            mass = mass * (k / (k - 1))
        else:
            mass = xp.sum(h, axis=1, dtype=xp.float64)[:, None]
        return xp.mean(h, axis=0), mass

    def _is_spectral(self, problem: Problem) -> bool:
        return problem.m > self.tasks or problem.k > self.classes


def _spectral(shape: _Shape, gram: Array, root: Array | None, *, thinned: bool) -> _Spectral:
    """All tasks' inverses from one eigendecomposition of `C`, or of its Gram matrix beside root.

    In low rank `C = V diag(lambda) V^T` with `V = root^T U lambda^-1/2`; eigenvalues that are
    rounding are left to the ridge.
    """
    xp = shape.problem.xp
    values, basis = xp.linalg.eigh(gram)
    values = xp.clip(values, 0.0, None)
    spectrum = shape.scale[:, :, None] * values
    if thinned:
        harmonic = 1.0 / xp.mean(1.0 / (spectrum + shape.ridge[:, None, None]), axis=(1, 2))
        shape = replace(shape, ridge=xp.maximum(shape.ridge, 0.5 * harmonic))
    factor = 1.0 / (spectrum + shape.ridge[:, None, None])
    rest = xp.zeros_like(shape.ridge)
    if root is not None:
        rest = 1.0 / shape.ridge
        real = values > 1e-6 * xp.max(values)
        basis = cast(root.T, values.dtype) @ (basis / xp.sqrt(xp.where(real, values, 1.0)))
        factor = xp.where(real, factor - rest[:, None, None], 0.0)
    return _Spectral(shape, basis, factor, rest)


@dataclass(frozen=True)
class _Shape(PerTask):
    """What every form of the inverse shares: the tasks and the coordinates that free the bias."""

    problem: Problem
    scale: Array  # a, (m, 1), or (m, k) where classes have their own
    ridge: Array  # (m,)
    mean: Array  # (d,)
    mass: Array  # (m, 1) or (m, k): curvature of one bias

    def centred(self, v: Array) -> tuple[Array, Array]:
        """Weights `(m, k, d)` of `v` in the centred coordinates, and its biases."""
        weights, bias = self.problem.split(v)
        return weights - bias[:, :, None] * self.mean, bias

    def join(self, out: Array, bias: Array) -> Array:
        """Back from the centred coordinates, `(m, p)`."""
        return self.problem.join(out, bias / self.mass - out @ self.mean)

    def take_tasks(self, index: list[int]) -> _Shape:
        """The remaining tasks."""
        keep = {name: take_tasks(getattr(self, name), index) for name in ("scale", "ridge", "mass")}
        return replace(self, problem=self.problem.take_tasks(index), **keep)


@dataclass(frozen=True)
class _Inner(PerTask):
    """An inverse for each task."""

    shape: _Shape
    inner: Array  # (m, d, d), or (m, r, r) beside root
    root: Array | None  # (r, d): C = root^T root

    def solve(self, v: Array) -> Array:
        centred, bias = self.shape.centred(v)
        if self.root is None:
            return self.shape.join(centred @ self.inner, bias)
        t = cast(cast(centred, self.root.dtype) @ self.root.T, v.dtype) @ self.inner
        scaled = cast(t * self.shape.scale[:, :, None], self.root.dtype)
        back = cast(scaled @ self.root, v.dtype)
        return self.shape.join((centred - back) / self.shape.ridge[:, None, None], bias)

    def take_tasks(self, index: list[int]) -> _Inner:
        """The remaining tasks."""
        return _Inner(take_tasks(self.shape, index), take_tasks(self.inner, index), self.root)


@dataclass(frozen=True)
class _Spectral(PerTask):
    """`rest + basis diag(factor) basis^T`: one basis for every task."""

    shape: _Shape
    basis: Array  # (d, r)
    factor: Array  # (m, k, r)
    rest: Array  # (m,)

    def solve(self, v: Array) -> Array:
        centred, bias = self.shape.centred(v)
        xp = self.shape.problem.xp
        m, k, d = centred.shape
        # Flat: one product with all rows, where m small ones would wait for memory.
        t = xp.reshape(xp.reshape(centred, (m * k, d)) @ self.basis, (m, k, -1))
        t = xp.reshape(t * self.factor, (m * k, -1)) @ self.basis.T
        out = xp.reshape(t, (m, k, d)) + self.rest[:, None, None] * centred
        return self.shape.join(out, bias)

    def take_tasks(self, index: list[int]) -> _Spectral:
        """The remaining tasks."""
        chosen = (take_tasks(part, index) for part in (self.shape, self.factor, self.rest))
        shape, factor, rest = chosen
        return _Spectral(shape, self.basis, factor, rest)
