"""The certificate: a rigorous lower bound on the optimum, so that `F(w) - bound` bounds the error.

Fenchel duality. For any distributions `Q_i` over the classes whose weighted mean is the class
frequencies `f` (the condition that the free bias imposes),

    F*  >=  D(Q) = mean H(Q_i) - ||G(Q)||^2 / (2 l2),    G(Q) = (1/S) sum_i s_i (Q_i - Y_i) x_i^T,

and at the optimum `Q = softmax(Z)` attains it. At an iterate, `P = softmax(Z)` misses the mean
condition by `delta = mean P - f`. Two ways to make a feasible `Q` of it:

1. *mixture*: `Q = (1-t) P + t c` with one constant distribution `c`. Free and always possible, but
   it moves every row towards a constant: first order in `delta`, which `1/l2` then multiplies.
2. *repaired*: the rows of a sample move to `Q_i = P_i - J_i beta`, `J_i = diag P_i - P_i P_i^T`,
   where `beta` solves one `k x k` system so that the mean is met: second order in `delta`. What
   that leaves of a class's excess (`Q` is cut at 0, and `beta` where it is large) leaves the class
   in the same proportion in each of these rows, for the classes that lack some.
Whatever the repair leaves of `delta` goes to the mixture, so that both are bounds for any sample.
`docs/decisions/certificate.md` has what was tried beside them. For `l2 = 0` no `Q` with `G = 0` is
at hand: the bound is 0, as no loss is negative.

Without biases there is no condition: `P` is feasible as it is, and the gap of any point is

    F(w) - D(P) = ||grad F(w)||^2 / (2 l2).
"""

from __future__ import annotations

from typing import NamedTuple

from convexprobe.activations.source import Rows
from convexprobe.arrays.backend import Array, cast, namespace, on_cpu
from convexprobe.arrays.elementwise import by_torch_if_large
from convexprobe.arrays.linalg import inverse_spd
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.pullback import Pullback
from convexprobe.problem.row_sample import Sample

DENSE = 64
"""Classes up to which a repair solves its system by factors, whose matrix takes `2 k` flops for
each probability."""

ITERATIONS, LEFT = 30, 1e-6
"""Of the conjugate gradients that solve it otherwise, at most, and the share of the residual's
square that they leave."""


def lower_bound(problem: Problem, at: Evaluation, sample: Sample | None = None) -> Array:
    """A lower bound on `F*` in nats, `(m,)` float64, at least 0.

    Args:
        problem: the family.
        at: its evaluation at any point.
        sample: rows with their probabilities at that same point: for the repaired bound, which
            families without biases do not need.
    """
    xp = problem.xp
    residual, bias = problem.split(at.gradient - problem.penalty(at.w))
    entropy = at.entropy
    if not problem.bias:
        square = xp.sum(residual * residual, axis=(1, 2))
        return _clipped(entropy - problem.over_penalty(square, xp.inf))
    if sample is not None:
        change, gradient = _repair(problem, sample, bias)
        dw, db = problem.split(gradient)
        entropy, residual, bias = entropy + change, residual + dw, bias + db

    # Mixture: the smallest t for which c = (f - (1-t) mean P) / t is a distribution.
    f = problem.frequency
    prior = f + bias
    excess = xp.where(prior > 0, bias / xp.where(prior > 0, prior, 1.0), 0.0)
    t = xp.clip(xp.max(excess, axis=1), 0.0, 1.0)
    c = xp.where(t[:, None] > 0, f - (1.0 - t)[:, None] * prior, f)
    c = xp.where(c > 0, c, 0.0)
    mass = xp.sum(c, axis=1, keepdims=True)
    c = xp.where(mass > 0, c / xp.where(mass > 0, mass, 1.0), f)
    mixed = xp.sum(xp.where(c > 0, -c * xp.log(xp.where(c > 0, c, 1.0)), 0.0), axis=1)
    constant = c[:, :, None] * problem.mean[:, None, :] - problem.moment
    g = (1.0 - t)[:, None, None] * residual + t[:, None, None] * constant
    square = xp.sum(g * g, axis=(1, 2))
    return _clipped((1.0 - t) * entropy + t * mixed - problem.over_penalty(square, xp.inf))


def _clipped(bound: Array) -> Array:
    """The bound, or 0 where that is better: no loss is negative, and NaN is no bound."""
    xp = namespace(bound)
    return xp.where(bound > 0, bound, xp.zeros_like(bound))


def estimated_gap(problem: Problem, gradient: Array, unpenalised: Array | float) -> Array:
    """`||grad||^2 / (2 l2)` for a gradient `(m, p)` after the bias was moved to have none, nats.

    The repaired gap, `(m,)`, if the repair cost no entropy. No bound: it tells whether paying for
    one can be worth it. (Moving the bias takes its share times the feature mean from the weights'.)
    Without biases it is the gap itself.
    """
    weights, bias = problem.split(gradient)
    centred = weights - bias[:, :, None] * problem.mean[:, None, :]
    return problem.over_penalty(problem.xp.sum(centred * centred, axis=(1, 2)), unpenalised)


def _repair(problem: Problem, sample: Sample, delta: Array) -> tuple[Array, ...]:
    """Changes of mean entropy `(m,)` and of `[G; mean]` `(m, p)` that cancel `delta` `(m, k)`."""
    xp, p, share = namespace(delta), sample.p, sample.share[:, None, :]
    solve = _by_iterations if problem.k > DENSE and on_cpu(p) else _by_factors
    beta = solve(problem, p, share, delta)
    beta = xp.where(xp.isfinite(beta), beta, xp.zeros_like(beta))
    # Q_ik = P_ik (1 - beta_k + P_i.beta) >= 0 where the range of beta is below 1. A constant moves
    # nothing; a class that would move far (it has few uncertain rows) is held back, and not all.
    beta = beta - xp.sum(problem.frequency * beta, axis=1, keepdims=True)
    beta = xp.clip(beta, -1.0, 1.0)
    u, f64 = cast(beta, p.dtype)[:, :, None], xp.float64
    blocks = list(Rows(sample.x).spans(problem.m * problem.k))
    mass = gained = xp.zeros_like(delta)
    for rows in blocks:
        q, part = _tilted(p[:, :, rows], u), share[:, :, rows]
        mass = mass + cast(xp.sum(q * part, axis=2), f64)
        q -= p[:, :, rows]
        q *= part
        gained = gained + cast(xp.sum(q, axis=2), f64)
    mass, gained = problem.all_reduce(mass, gained)
    # What is left of a class's excess leaves it in the same proportion in every row, for those that
    # lack some.
    left = delta + gained
    leaves = xp.clip(left, 0.0, None) / xp.clip(mass, 1e-300, None)
    lack = xp.clip(-left, 0.0, None)
    lack = lack / xp.clip(xp.sum(lack, axis=1, keepdims=True), 1e-300, None)
    leaves = cast(xp.clip(leaves, None, 1.0), p.dtype)[:, :, None]
    lack = cast(lack, p.dtype)[:, :, None]
    change, pulled = xp.zeros_like(problem.l2), Pullback(problem, problem.m)
    for rows in blocks:
        moved, entropy = _moved(p[:, :, rows], u, leaves, lack)
        moved *= share[:, :, rows]
        pulled.add(moved, sample.x[rows, :])
        change = change + xp.sum(entropy * share[:, 0, rows], axis=1, dtype=f64)
    return problem.all_reduce(change, pulled.value())


@by_torch_if_large
def _tilted(p: Array, u: Array) -> Array:
    """`P_ik (1 - u_k + P_i.u)`, cut at 0 and scaled to distributions, for `u` `(m, k, 1)`."""
    xp = namespace(p)
    q = xp.clip(1.0 + xp.matrix_transpose(u) @ p - u, 0.0, None)
    q *= p
    q /= xp.sum(q, axis=1, keepdims=True)
    return q


class _Moved(NamedTuple):
    """What a repair does to rows: `Q - P`, `(m, k, r)`, and the gain of entropy, `(m, r)`."""

    difference: Array
    entropy: Array


@by_torch_if_large
def _moved(p: Array, u: Array, leaves: Array, lack: Array) -> _Moved:
    """The repair of rows with probabilities `(m, k, r)`: a tilt by `u`, and then of every class the
    share that leaves it, to where it lacks; `(m, k, 1)` each."""
    xp = namespace(p)
    q = _tilted(p, u)
    moving = xp.matrix_transpose(leaves) @ q
    q *= 1.0 - leaves
    q += lack * moving
    entropy = _plogp(p)
    entropy -= _plogp(q)
    q -= p
    return _Moved(q, xp.sum(entropy, axis=1))


def _by_factors(problem: Problem, p: Array, share: Array, delta: Array) -> Array:
    """`K^-1 delta` for `K = sum_i s_i J_i`, from the matrix itself."""
    xp = namespace(delta)
    weighted = p * share
    eye = xp.eye(problem.k, dtype=xp.float64, device=delta.device)
    outer = cast(weighted @ xp.matrix_transpose(p), xp.float64)
    mass, outer = problem.all_reduce(xp.sum(weighted, axis=2, dtype=xp.float64), outer)
    k_matrix = eye[None, :, :] * mass[:, :, None] - outer
    # The system is singular along constants and for classes with no mass in the sample.
    size = xp.max(mass, axis=1)[:, None, None]
    ridge = size * (1e-12 * eye + 1.0 / problem.k)[None, :, :] + 1e-300 * eye[None, :, :]
    return (inverse_spd(k_matrix + ridge, wait=False) @ delta[:, :, None])[:, :, 0]


def _by_iterations(problem: Problem, p: Array, share: Array, delta: Array) -> Array:
    """The same by conjugate gradients on its diagonal, which read `P` twice an iteration."""
    xp = namespace(delta)

    def product(v: Array) -> Array:
        v = cast(v, p.dtype)[:, :, None]
        mean = xp.matrix_transpose(v) @ p  # (m, 1, s)
        out = mass * v[:, :, 0] - (p @ xp.matrix_transpose(mean * share))[:, :, 0]
        return problem.all_reduce(cast(out, xp.float64))[0]

    column = xp.matrix_transpose(share)  # (m or 1, s, 1)
    mass = (p @ column)[:, :, 0]
    square = p * p
    (diagonal,) = problem.all_reduce(cast(mass - (square @ column)[:, :, 0], xp.float64))
    floor = 1e-12 * xp.max(diagonal, axis=1, keepdims=True) + 1e-300
    diagonal = xp.maximum(diagonal, floor)
    x, r = xp.zeros_like(delta), delta
    step = z = r / diagonal
    rz = first = xp.sum(r * z, axis=1, keepdims=True)
    for _ in range(ITERATIONS):
        q = product(step)
        curvature = xp.sum(step * q, axis=1, keepdims=True)
        alpha = xp.where(curvature > 0, rz / xp.where(curvature > 0, curvature, 1.0), 0.0)
        x, r = x + alpha * step, r - alpha * q
        z = r / diagonal
        last, rz = rz, xp.sum(r * z, axis=1, keepdims=True)
        if not bool(xp.any(rz > LEFT * first)):
            break
        step = z + xp.where(last > 0, rz / xp.where(last > 0, last, 1.0), 0.0) * step
    return x


def _plogp(p: Array) -> Array:
    """`p log p`, 0 at 0."""
    out = namespace(p).log(namespace(p).clip(p, 1e-37, None))
    out *= p
    return out
