"""Conjugate gradients for linear systems with a Hessian."""

from __future__ import annotations

from collections.abc import Callable

from convexprobe.arrays.backend import Array, namespace, on_cpu
from convexprobe.problem.preconditioners import Inverse
from convexprobe.solvers.base import inner

LOOK = 5
"""Iterations on a device from one look at what is left to the next."""


def conjugate_gradient(
    product: Callable[[Array], Array],
    b: Array,
    inverse: Inverse,
    *,
    tolerance: float,
    iterations: int,
) -> Array:
    """Solve `H x = b` for every task, `(m, p)`, to a relative residual in the inverse's norm.

    A task stops on its own, also at a direction without curvature: its step becomes 0. On a device
    nobody looks whether all tasks have stopped but after three iterations, and then every `LOOK`:
    the host would wait for each look, and those between change nothing.
    """
    xp, every = namespace(b), 1 if on_cpu(b) else LOOK
    x, r = xp.zeros_like(b), b
    z = inverse.solve(r)
    p, rz = z, inner(r, z)
    target = tolerance**2 * rz
    active = rz > 0
    for i in range(iterations):
        q = product(p)
        curvature = inner(p, q)
        active = active & (curvature > 0)
        alpha = xp.where(active, rz / xp.where(active, curvature, 1.0), 0.0)[:, None]
        x, r = x + alpha * p, r - alpha * q
        z = inverse.solve(r)
        rz, last = inner(r, z), rz
        active = active & (rz > target)
        if i % every == min(2, every - 1) and not bool(xp.any(active)):
            break
        p = z + xp.where(active, rz / xp.where(active, last, 1.0), 0.0)[:, None] * p
    return x
