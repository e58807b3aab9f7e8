"""A preconditioner with a curvature of its own for each class, in an eigenbasis that all share.

With `h_ic = P_ic (1 - P_ic)`, the Hessian's diagonal block of class `c` is

    C_c = sum_i h_ic (x_i - m_c)(x_i - m_c)^T + l2 I,    m_c = sum_i h_ic x_i / sum_i h_ic,

where the class's own mean decouples its bias (without biases, `m_c = 0`). Dense factors of all
blocks would cost `k d^3`. In the eigenbasis `V` of the shared curvature
`sum_ic h_ic (x_i - m)(x_i - m)^T` every `C_c` is nearly diagonal: each class gets a dense block on
the leading directions, a diagonal on the others, and one number for the directions beyond `V`, if
the sample's rows do not span all features. That costs about twice the shared curvature;
`docs/decisions/preconditioner.md` has what it saves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from convexprobe.arrays.backend import Array, beside, cast, generator, namespace, on_cpu
from convexprobe.arrays.linalg import eigh, inverse_spd
from convexprobe.problem.objective import Problem
from convexprobe.problem.preconditioners import Inverse
from convexprobe.problem.row_sample import Sample, draw_rows
from convexprobe.problem.tasks import PerTask, take_tasks

TOGETHER = 1 << 26
"""Numbers of rows that are multiplied at once on a device, whose launches cost more than memory; on
a CPU one class at a time stays in cache."""


@dataclass(frozen=True)
class EigenBlocks:
    """The preconditioner above.

    Attributes:
        leading: directions on which every class has a dense block.
        rank: features up to which `V` is `d x d`; with more, it is made from so many rows.
    """

    leading: int = 128
    rank: int = 1024

    def build(self, sample: Sample) -> Inverse:
        """O(s d^2 + d^3 + m k s r^2) flops with `r` leading directions; in the powers of `d`,
        `rank` stands for one `d` if it is less."""
        problem, xp = sample.problem, sample.problem.xp
        f32, f64 = problem.dtype, xp.float64
        m, k, s = sample.p.shape
        h = sample.p * (1.0 - sample.p) * sample.weight[:, None, :]
        mass = xp.sum(h, axis=2, dtype=f64)
        shared = xp.sum(xp.mean(h, axis=0), axis=0)
        mass, total, mean = problem.all_reduce(
            mass, xp.sum(shared, dtype=f64), cast(shared @ sample.x, f64)
        )
        mass = xp.maximum(mass, 1e-12 * xp.max(mass) + 1e-300)
        mean = problem.centre(mean / (total + 1e-300))
        centred = sample.x - cast(mean, f32)
        basis = _eigenbasis(problem, sample, centred, shared, self.rank)
        q = basis.shape[1]
        r = min(self.leading, q)
        b = centred @ basis
        flat = xp.reshape(h, (m * k, s))
        first, second = problem.all_reduce(cast(flat @ b, f64), cast(flat @ (b * b), f64))
        class_mean = problem.centre(xp.reshape(first, (m, k, q)) / mass[:, :, None])
        diagonal = xp.reshape(second, (m, k, q)) - mass[:, :, None] * class_mean * class_mean
        ridge = problem.l2[:, None, None] + 1e-6 * xp.mean(
            xp.clip(diagonal, 0.0, None), axis=(1, 2), keepdims=True
        )
        ridge = xp.maximum(ridge, xp.full_like(ridge, 1e-30))  # one row, no penalty: no curvature
        diagonal = xp.clip(diagonal, 0.0, None) + ridge
        # Half the harmonic mean of what is seen stands for what is not.
        rest = 1.0 / xp.maximum(0.5 / xp.mean(1.0 / diagonal, axis=2), ridge[:, :, 0])
        # One array for all: small ones between the rows' would keep the heap from reusing theirs.
        gram = xp.empty((m, k, r, r), dtype=f32, device=b.device)
        together = 1 if on_cpu(b) else max(TOGETHER // max(s * r, 1), 1)
        for t in range(m):
            for first in range(0, k, together):
                part = slice(first, first + together)
                rows = b[None, :, :r] - cast(class_mean[t, part, None, :r], f32)
                rows *= xp.sqrt(h[t, part, :])[:, :, None]
                gram[t, part, :, :] = xp.matrix_transpose(rows) @ rows
        gram = problem.all_reduce(cast(gram, f64))[0]
        eye = xp.eye(r, dtype=f64, device=gram.device)
        block = cast(inverse_spd(gram + ridge[:, :, :, None] * eye), f32)
        mean = cast(mean, f32)
        return _EigenInverse(problem, mean, basis, mass, class_mean, 1.0 / diagonal, block, rest)


def _eigenbasis(
    problem: Problem, sample: Sample, centred: Array, shared: Array, rank: int
) -> Array:
    """Orthonormal eigenvectors `(d, q)` of the shared curvature, largest eigenvalue first."""
    xp, f64 = problem.xp, problem.xp.float64
    if problem.d <= min(rank, sample.rows):
        root = centred * xp.sqrt(shared)[:, None]
        (gram,) = problem.all_reduce(cast(root.T @ root, f64))
        return xp.flip(eigh(cast(gram, problem.dtype))[1], axis=1)
    root = centred * xp.sqrt(shared)[:, None]
    if sample.rows > rank:  # as few rows, drawn where the curvature is
        index, inverse_probability = draw_rows(
            shared[None, :], None, rank, generator(0), problem.communicator
        )
        scale = cast(beside(inverse_probability**0.5, root), root.dtype)
        root = xp.take(root, beside(index, root), axis=0) * scale[:, None]
    root = problem.communicator.all_gather(root)
    values, inner = eigh(cast(root @ root.T, f64))
    values, inner = xp.flip(values, axis=0), xp.flip(inner, axis=1)
    kept = max(int(xp.sum(cast(values > 1e-5 * values[0], f64))), 1)
    inner = inner[:, :kept] / xp.sqrt(values[:kept])
    return root.T @ cast(inner, problem.dtype)


@dataclass(frozen=True)
class _EigenInverse(PerTask):
    problem: Problem
    mean: Array  # (d,)
    basis: Array  # (d, q)
    mass: Array  # (m, k)
    class_mean: Array  # (m, k, q), in the basis
    inverse_diagonal: Array  # (m, k, q)
    block: Array  # (m, k, r, r)
    rest: Array  # (m, k)

    def solve(self, v: Array) -> Array:
        xp, f32 = namespace(v), self.basis.dtype
        weights, bias = self.problem.split(v)
        m, k, d = weights.shape
        r, q = self.block.shape[-1], self.basis.shape[1]
        centred = cast(weights, f32) - cast(bias, f32)[:, :, None] * self.mean
        flat = xp.reshape(centred, (m * k, d))
        inside = xp.reshape(flat @ self.basis, (m, k, q))
        t = cast(inside, v.dtype) - bias[:, :, None] * self.class_mean
        dense = (self.block @ cast(t[:, :, :r, None], f32))[:, :, :, 0]
        out = xp.concat(
            [cast(dense, v.dtype), t[:, :, r:] * self.inverse_diagonal[:, :, r:]], axis=2
        )
        out_bias = bias / self.mass - xp.sum(out * self.class_mean, axis=2)
        back = xp.reshape(cast(out, f32), (m * k, q))
        if q < d:
            rest = cast(xp.reshape(self.rest, (m * k, 1)), f32)
            back = back - rest * xp.reshape(inside, (m * k, q))
            whole = back @ self.basis.T + rest * flat
        else:
            whole = back @ self.basis.T
        out_bias = out_bias - cast(xp.reshape(whole @ self.mean, (m, k)), v.dtype)
        return self.problem.join(xp.reshape(cast(whole, v.dtype), (m, k, d)), out_bias)

    def take_tasks(self, index: list[int]) -> _EigenInverse:
        names = ("mass", "class_mean", "inverse_diagonal", "block", "rest")
        kept = {name: take_tasks(getattr(self, name), index) for name in names}
        return replace(self, problem=self.problem.take_tasks(index), **kept)
