"""Limited-memory BFGS with a curvature preconditioner as its first metric."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from convexprobe.arrays.backend import Array, cast, generator, namespace, to_numpy
from convexprobe.arrays.linalg import solve
from convexprobe.problem.leading import Leading, directions, leading
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.preconditioners import Inverse, Preconditioner
from convexprobe.problem.row_sample import Sample, sample_size
from convexprobe.solvers.base import (
    SolverState,
    check_settings,
    fresh_inverse,
    has_fallen,
    inner,
    losses,
)
from convexprobe.solvers.conjugate_gradient import conjugate_gradient
from convexprobe.solvers.ladder import MANY, STALE, Bought, ladder
from convexprobe.solvers.leading_step import pays
from convexprobe.solvers.line_search import line_search

NEWTON = 12
"""Inner iterations of a warm start's first step at most."""

SLOPE = 0.5
"""The fraction of the slope that a step may leave: half as much work as at a fifth, and as many
passes."""

NARROW = 256
"""Features up to which, with `MANY` classes, a pass costs so little beside the work on its logits
that a step is evaluated before any search along it, unless the last one had to be searched for."""

LONG, FEW_PAIRS = 1e5, 10
"""Parameters of all tasks beyond which no more than so many pairs are kept: to read twice as many
takes as long as half of a pass, and saves none."""


@dataclass
class LBFGSState(SolverState):
    """Attributes: `steps_taken` and `changes`, pairs of steps and changes of gradient, `(m, p)`
    each in the compute dtype, newest last; `bought`, the place on the ladder; `leading`, the
    leading directions, once they pay; `whole`, whether the last step served as it was."""

    steps_taken: list[Array] = field(default_factory=list)
    changes: list[Array] = field(default_factory=list)
    bought: Bought = field(default_factory=Bought)
    leading: Leading | None = None
    whole: bool = True


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS: the two-loop recursion around a preconditioner, with a line search on logits.

    A step is one pass. Memory: O(memory m p) for the pairs, O(m k n) for logits and their change,
    and the preconditioner's.

    Sources: Nocedal and Wright, Algorithms 7.4 and 7.5; the scaled first metric is eq. 7.20 in the
    preconditioner's norm.

    Attributes:
        preconditioner: the first metric, rebuilt by the rule of `fresh_inverse`; None for one that
            is bought when it pays (`solvers/ladder.py`).
        memory: pairs kept at most; of many parameters, half of the default.
        rows: rows of a given preconditioner's sample, or `4 d` if that is more (`d` counted up to
            1 024).
        seed: of the draws.
    """

    preconditioner: Preconditioner | None = None
    memory: int = 20
    rows: int = 2500
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, memory=1, rows=1)

    def init(self, problem: Problem, w: Array) -> LBFGSState:
        """Evaluate at `w`; nothing is built before a step is asked for."""
        at = problem.evaluate(w, keep=True)
        return LBFGSState(at, built=at.loss)

    def _metric(self, problem: Problem, state: LBFGSState) -> tuple[Inverse, Array, Bought]:
        """This step's preconditioner, the losses where it was built, the place on the ladder."""
        at, bought = state.at, state.bought
        assert at is not None

        def build(recipe: Preconditioner, rows: int) -> Inverse:
            rng = generator(self.seed, state.steps + 1)
            return recipe.build(Sample.draw(problem, at, rows, rng))

        if self.preconditioner is not None:
            recipe, size = self.preconditioner, sample_size(problem.n, problem.d, self.rows)
            return *fresh_inverse(state, lambda: build(recipe, size)), bought
        levels = ladder(problem)
        if state.inverse is not None and bought.level < 0:  # a warm start's: as good as the first
            bought = replace(bought, level=0)
        level = bought.next(problem, levels, has_fallen(state, STALE))
        if level is None:
            assert state.inverse is not None
            bought = Bought(bought.level, bought.there + 1.0, bought.since + 1.0)
            return state.inverse, to_numpy(state.built), bought
        there = 1.0 if level != bought.level else bought.there + 1.0
        inverse = build(levels[level].recipe, levels[level].rows)
        return inverse, losses(at), Bought(level, there, since=1.0)

    def _newton(self, problem: Problem, at: Evaluation, inverse: Inverse) -> Array:
        """The first direction of a warm start with many classes: an inexact Newton step.

        Its error is small in all directions alike, so that a bound can follow at once.
        """
        size = sample_size(problem.n, problem.d, self.rows, 2)
        sample = Sample.draw(problem, at, size, generator(self.seed, 0))
        return conjugate_gradient(
            sample.definite_curvature, at.gradient, inverse, tolerance=0.2, iterations=NEWTON
        )

    def step(self, problem: Problem, w: Array, state: LBFGSState) -> tuple[Array, LBFGSState]:
        xp, at = problem.xp, state.at
        assert at is not None
        steps, many = state.steps + 1, directions(problem) > 0
        warm = many and state.inverse is not None and state.steps == 0
        inverse, built, bought = self._metric(problem, state)
        if warm:
            direction = self._newton(problem, at, inverse)
        else:
            direction = two_loop(inverse, at.gradient, state.steps_taken, state.changes)
        top = state.leading
        if top is None and many and pays(problem, at):
            top = leading(problem)
        first = state.whole and top is None and problem.k > MANY and problem.d <= NARROW
        new, t = line_search(problem, at, direction, slope_left=SLOPE, leading=top, end_first=first)
        whole = not first or bool(xp.all(t == 1.0))
        s, y = new.w - at.w, new.gradient - at.gradient
        # A pair without positive curvature (a task that stayed) would break the metric.
        good = inner(s, y) > 1e-12 * xp.sqrt(inner(s, s) * inner(y, y))
        s, y = (cast(xp.where(good[:, None], a, 0.0), problem.dtype) for a in (s, y))
        kept = self.memory if problem.m * problem.p <= LONG else min(self.memory, FEW_PAIRS)
        taken, changes = [*state.steps_taken, s][-kept:], [*state.changes, y][-kept:]
        return new.w, LBFGSState(
            new, None, steps, inverse, built, taken, changes, bought, top, whole
        )


def two_loop(inverse: Inverse, gradient: Array, s: list[Array], y: list[Array]) -> Array:
    """The inverse BFGS metric of the pairs applied to the gradient, `(m, p)`.

    A pair that is zero for a task, which made no usable step, changes nothing for it.

    The two loops are triangular systems in the pairs' inner products: with `S` and `Y` the pairs,
    oldest first, `T` the upper triangle of `S^T Y` and `D` its diagonal,

        a = T^-1 S^T g,    r = P^-1 (g - Y a),    r + S T^-T (D a - Y^T r),

    where `s.y / y.(P^-1 y)` of the newest pair that is not zero scales `P^-1`.
    """
    if not s:
        return inverse.solve(gradient)
    xp, f64 = namespace(gradient), gradient.dtype
    steps, changes = xp.stack(s, axis=1), xp.stack(y, axis=1)  # (m, pairs, p)

    def inside(pairs: Array, v: Array) -> Array:
        """Inner products of pairs with `v` `(m, p)`, `(m, pairs, 1)`."""
        return cast(pairs @ cast(v, pairs.dtype)[:, :, None], f64)

    def combined(pairs: Array, a: Array) -> Array:
        """Pairs times `a` `(m, pairs, 1)`, added up, `(m, p)`."""
        return cast((xp.matrix_transpose(pairs) @ cast(a, pairs.dtype))[:, :, 0], f64)

    order = xp.arange(len(s), dtype=f64, device=gradient.device)
    eye = xp.eye(len(s), dtype=f64, device=gradient.device)
    products = cast(steps @ xp.matrix_transpose(changes), f64)
    products = xp.where(order[:, None] <= order[None, :], products, 0.0)
    own = xp.sum(products * eye, axis=2)  # (m, pairs)
    usable = own > 0
    products = products + eye * cast(~usable, eye.dtype)[:, None, :]
    a = solve(products, inside(steps, gradient))
    q = gradient - combined(changes, a)
    latest = xp.max(xp.where(usable, order[None, :], -1.0), axis=1)  # -1 where there is none
    chosen = cast(order[None, :] == latest[:, None], eye.dtype)
    newest = combined(changes, chosen[:, :, None])
    curvature, sy = inner(newest, inverse.solve(newest)), xp.sum(chosen * own, axis=1)
    scale = xp.where(curvature > 0, sy / xp.where(curvature > 0, curvature, 1.0), 1.0)
    r = inverse.solve(q) * xp.where(latest >= 0, scale, 1.0)[:, None]
    right = xp.where(usable, own, 0.0)[:, :, None] * a - inside(changes, r)
    return r + combined(steps, solve(xp.matrix_transpose(products), right))
