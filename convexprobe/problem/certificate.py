"""The certificate: a rigorous lower bound on the optimum, so that `F(w) - bound` bounds the error.

Fenchel duality. For any distributions `Q_i` over the classes whose weighted mean is the class
frequencies `f` (the condition that the free bias imposes),

    F*  >=  D(Q) = mean H(Q_i) - ||G(Q)||^2 / (2 l2),    G(Q) = (1/S) sum_i s_i (Q_i - Y_i) x_i^T,

and at the optimum `Q = softmax(Z)` attains it. At an iterate, `P = softmax(Z)` misses the mean
condition by `delta = mean P - f`. Two ways to make a feasible `Q` of it:

1. *mixture*: `Q = (1-t) P + t c` with one constant distribution `c`. Free and always possible, but
   it moves every row towards a constant: first order in `delta`, which `1/l2` then multiplies.
2. *repaired*: the rows of a sample move to `Q_i = P_i - J_i beta`, `J_i = diag P_i - P_i P_i^T`,
   where `beta` solves one `k x k` system so that the mean is met: second order in `delta`.
Whatever the repair leaves of `delta` (it is cut where `Q` would become negative) goes to the
mixture, so that both are bounds for any sample. `docs/decisions/certificate.md` has what was tried
beside them. For `l2 = 0` no `Q` with `G = 0` is at hand: the bound is 0, as no loss is negative.

Without biases there is no condition: `P` is feasible as it is, and the gap of any point is

    F(w) - D(P) = ||grad F(w)||^2 / (2 l2).
"""

from __future__ import annotations

from convexprobe.arrays.backend import Array, cast, namespace
from convexprobe.arrays.linalg import inverse_spd
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.row_sample import Sample


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
    xp = namespace(delta)
    p = sample.p
    weighted = p * sample.share[:, None, :]
    eye = xp.eye(problem.k, dtype=xp.float64, device=delta.device)
    outer = cast(weighted @ xp.matrix_transpose(p), xp.float64)
    mass, outer = problem.all_reduce(xp.sum(weighted, axis=2, dtype=xp.float64), outer)
    k_matrix = eye[None, :, :] * mass[:, :, None] - outer
    # The system is singular along constants and for classes with no mass in the sample.
    size = xp.max(mass, axis=1)[:, None, None]
    ridge = size * (1e-12 * eye + 1.0 / problem.k)[None, :, :] + 1e-300 * eye[None, :, :]
    beta = inverse_spd(k_matrix + ridge, wait=False) @ delta[:, :, None]
    beta = beta - xp.min(beta, axis=1, keepdims=True)
    beta = xp.where(xp.isfinite(beta), beta, xp.zeros_like(beta))
    # Q_ik = P_ik (1 - beta_k + P_i.beta) >= 0 whenever the range of beta is below 1.
    span = xp.max(beta, axis=1, keepdims=True)
    beta = beta * xp.where(span > 1.0, 1.0 / xp.where(span > 1.0, span, 1.0), 1.0)
    u = cast(beta, p.dtype)
    q = p * xp.clip(1.0 - u + xp.sum(p * u, axis=1, keepdims=True), 0.0, None)
    q /= xp.sum(q, axis=1, keepdims=True)
    change = xp.sum(_plogp(p) - _plogp(q), axis=1) * sample.share
    pulled = problem.pullback((q - p) * sample.share[:, None, :], sample.x)
    return problem.all_reduce(xp.sum(change, axis=1, dtype=xp.float64), pulled)


def _plogp(p: Array) -> Array:
    """`p log p`, 0 at 0."""
    xp = namespace(p)
    return p * xp.log(xp.clip(p, 1e-37, None))
