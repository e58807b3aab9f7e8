"""Conjugate gradients for linear systems with a Hessian."""

from __future__ import annotations

from collections.abc import Callable

from convexprobe.arrays.backend import Array, namespace
from convexprobe.problem.preconditioners import Inverse
from convexprobe.solvers.base import inner


def conjugate_gradient(
    product: Callable[[Array], Array],
    b: Array,
    inverse: Inverse,
    *,
    tolerance: float,
    iterations: int,
) -> Array:
    """Solve `H x = b` for every task, `(m, p)`, to a relative residual in the inverse's norm.

    A task stops on its own, also at a direction without curvature: its step becomes 0.
    """
    xp = namespace(b)
    x, r = xp.zeros_like(b), b
    z = inverse.solve(r)
    p, rz = z, inner(r, z)
    target = tolerance**2 * rz
    active = rz > 0
    for _ in range(iterations):
        q = product(p)
        curvature = inner(p, q)
        active = active & (curvature > 0)
        alpha = xp.where(active, rz / xp.where(active, curvature, 1.0), 0.0)[:, None]
        x, r = x + alpha * p, r - alpha * q
        z = inverse.solve(r)
        rz, last = inner(r, z), rz
        active = active & (rz > target)
        if not bool(xp.any(active)):
            break
        p = z + xp.where(active, rz / xp.where(active, last, 1.0), 0.0)[:, None] * p
    return x
