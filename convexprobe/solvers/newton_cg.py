"""Newton's method on a sampled Hessian, solved by preconditioned conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

from convexprobe.arrays.backend import Array, generator, to_numpy
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.preconditioners import Curvature, Preconditioner
from convexprobe.problem.row_sample import Sample, sample_size
from convexprobe.solvers.base import (
    SolverState,
    check_fraction,
    check_settings,
    has_fallen,
    inner,
    losses,
)
from convexprobe.solvers.certifier import read
from convexprobe.solvers.conjugate_gradient import conjugate_gradient
from convexprobe.solvers.ladder import Level
from convexprobe.solvers.line_search import line_search

STALE = 0.6
"""The fraction of the loss at the last build below which the preconditioner may be rebuilt."""


@dataclass
class NewtonState(SolverState):
    """Attributes: `growth`, how many times the first sample's rows the next one has; `began` and
    `paid`, the family's passes before the first step and at the last build."""

    growth: int = 1
    began: float = 0.0
    paid: float = 0.0


@dataclass(frozen=True)
class NewtonCG:
    """Inexact Newton with full gradients and a Hessian from the rows that carry curvature.

    Each step draws rows in proportion to their uncertainty (`Sample.draw`), solves
    `H_S d = grad F` by preconditioned conjugate gradients on them, and searches along `d` on all
    rows. That is one pass, and `s/n` of a pass for each inner iteration. The error contracts by a
    constant that the sample's size sets, in all directions alike, so that the certificate follows
    closely. If the curvature met along a step is twice the sample's, the sample doubles, up to the
    limits of `sample_size`. The preconditioner is rebuilt where a loss has fallen and the passes
    since the last build have cost as much (`solvers/ladder.py`).

    Memory: O(m k n) for logits and their change, O(s d + m k s) for the sample, and the
    preconditioner's. Use it for many rows that can be indexed and share their curvature among
    classes: see `docs/decisions/solver.md`.

    Sources: truncated Newton, Nocedal and Wright, Algorithm 7.1; sub-sampled Hessians,
    Roosta-Khorasani and Mahoney 2019 (Algorithm 1) and Xu et al. 2016 (non-uniform sampling).

    Attributes:
        preconditioner: for the inner iterations.
        rows: rows of the first sample, or `4 d` if that is more (`d` counted up to 1 024).
        tolerance: relative residual at which the inner iterations stop.
        iterations: inner iterations at most.
        seed: of the row draws.
    """

    preconditioner: Preconditioner = field(default_factory=Curvature)
    rows: int = 2500
    tolerance: float = 0.2
    iterations: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, rows=1, iterations=1)
        check_fraction(self, "tolerance", self.tolerance)

    def _draw(self, problem: Problem, at: Evaluation, growth: int, step: int) -> Sample:
        size = sample_size(problem.n, problem.d, self.rows, growth)
        return Sample.draw(problem, at, size, generator(self.seed, step))

    def init(self, problem: Problem, w: Array) -> NewtonState:
        """Evaluate at `w` and draw the first sample; the first step builds the preconditioner."""
        at = problem.evaluate(w, keep=True)
        sample = self._draw(problem, at, 1, 0)
        return NewtonState(at, sample, built=at.loss, began=problem.passes)

    def step(self, problem: Problem, w: Array, state: NewtonState) -> tuple[Array, NewtonState]:
        xp, at, sample = problem.xp, state.at, state.sample
        assert at is not None and sample is not None
        inverse, built, paid = state.inverse, to_numpy(state.built), state.paid
        build = Level(self.preconditioner, sample.rows)
        due = problem.passes - paid >= build.price(problem)
        if inverse is None or (due and has_fallen(state, STALE)):
            inverse, built, paid = self.preconditioner.build(sample), losses(at), problem.passes
        direction = conjugate_gradient(
            sample.definite_curvature,
            at.gradient,
            inverse,
            tolerance=self.tolerance,
            iterations=self.iterations,
        )
        new, t = line_search(problem, at, direction)
        # Curvature met along the step, relative to the sample's: above 1 the step was too long.
        change = inner(new.gradient - at.gradient, new.w - at.w)
        predicted = t * t * inner(at.gradient, direction)
        moved = predicted > 0
        ratio = xp.where(moved, change / xp.where(moved, predicted, 1.0), 1.0)
        new, (ratio,) = read(problem, new, ratio)
        growth = 2 * state.growth if ratio.max() > 2.0 else state.growth
        steps = state.steps + 1
        sample = self._draw(problem, new, growth, steps)
        return new.w, NewtonState(new, sample, steps, inverse, built, growth, state.began, paid)
