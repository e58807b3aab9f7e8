"""Limited-memory BFGS with a curvature preconditioner as its first metric."""

from __future__ import annotations

from dataclasses import dataclass, field

from convexprobe.arrays.backend import Array, generator, namespace
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.preconditioners import Curvature, Inverse, Preconditioner
from convexprobe.problem.row_sample import Sample, sample_size
from convexprobe.solvers.base import SolverState, fresh_inverse, inner
from convexprobe.solvers.line_search import line_search


@dataclass
class LBFGSState(SolverState):
    """Attributes: `steps_taken` and `changes`, the last pairs `(m, p)`, newest last."""

    steps_taken: list[Array] = field(default_factory=list)
    changes: list[Array] = field(default_factory=list)


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS: two-loop recursion around a preconditioner, line search on logits.

    A step is one pass. The preconditioner is built anew whenever a task's loss has fallen below 0.6
    of what it was. Memory: O(memory m p) for the pairs, O(m k n) for logits and their change, and
    the preconditioner's. Use it for few rows or many classes, where a sample of rows saves little.

    Sources: Nocedal and Wright, Algorithms 7.4 and 7.5; the scaled first metric is eq. 7.20 in the
    preconditioner's norm.

    Attributes:
        preconditioner: the first metric.
        memory: pairs kept.
        rows: rows of the sample it is built from, or `4 d` if that is more (`d` up to 1 024).
        seed: of that draw.
    """

    preconditioner: Preconditioner = field(default_factory=Curvature)
    memory: int = 10
    rows: int = 2500
    seed: int = 0

    def _build(self, problem: Problem, at: Evaluation, step: int) -> Inverse:
        size = sample_size(problem.n, problem.d, self.rows)
        return self.preconditioner.build(Sample.draw(problem, at, size, generator(self.seed, step)))

    def init(self, problem: Problem, w: Array) -> LBFGSState:
        """Evaluate at `w`; nothing is built before a step is asked for."""
        at = problem.evaluate(w, keep=True)
        return LBFGSState(at, built=at.loss)

    def step(self, problem: Problem, w: Array, state: LBFGSState) -> tuple[Array, LBFGSState]:
        """One quasi-Newton step."""
        xp, at = problem.xp, state.at
        assert at is not None
        steps = state.steps + 1
        inverse, built = fresh_inverse(state, lambda: self._build(problem, at, steps))
        direction = two_loop(inverse, at.gradient, state.steps_taken, state.changes)
        new, _ = line_search(problem, at, direction)
        s, y = new.w - at.w, new.gradient - at.gradient
        # A pair without positive curvature (a task that stayed) would break the metric.
        good = inner(s, y) > 1e-12 * xp.sqrt(inner(s, s) * inner(y, y))
        s, y = xp.where(good[:, None], s, 0.0), xp.where(good[:, None], y, 0.0)
        taken = [*state.steps_taken, s][-self.memory :]
        changes = [*state.changes, y][-self.memory :]
        return new.w, LBFGSState(new, None, steps, inverse, built, taken, changes)


def two_loop(inverse: Inverse, gradient: Array, s: list[Array], y: list[Array]) -> Array:
    """The inverse BFGS metric of the pairs applied to the gradient, `(m, p)`.

    A zero pair stands for a task that made no usable step, and leaves that task alone.
    """
    xp = namespace(gradient)
    q, kept = gradient, []
    for s_i, y_i in zip(reversed(s), reversed(y), strict=True):
        sy = inner(s_i, y_i)
        rho = xp.where(sy > 0, 1.0 / xp.where(sy > 0, sy, 1.0), 0.0)
        alpha = rho * inner(s_i, q)
        q = q - alpha[:, None] * y_i
        kept.append((s_i, y_i, rho, alpha))
    r = inverse.solve(q)
    if kept:
        s_i, y_i, _, _ = kept[0]
        sy, yhy = inner(s_i, y_i), inner(y_i, inverse.solve(y_i))
        usable = (sy > 0) & (yhy > 0)
        r = r * xp.where(usable, sy / xp.where(usable, yhy, 1.0), 1.0)[:, None]
    for s_i, y_i, rho, alpha in reversed(kept):
        r = r + (alpha - rho * inner(y_i, r))[:, None] * s_i
    return r
