"""What a solver is, and what the solvers share: the line search and conjugate gradients.

A solver is a frozen record of hyperparameters. It sees vectors `(m, p)` and a `Problem`; it never
holds data, prints, reads a clock or tests convergence: `solvers.loop` does
that once for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from convexprobe._arguments import check_integer, check_real
from convexprobe.arrays.backend import Array, namespace
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.preconditioners import Inverse
from convexprobe.problem.row_sample import Sample

STALE = 0.6
"""What is left of a loss when the curvature where it was higher no longer serves."""


@dataclass
class SolverState:
    """What a solver carries from step to step; arrays have the task axis first.

    Attributes:
        at: the evaluation at the current `w`, or None if the step made none over all rows.
        sample: rows evaluated at the current `w`, or None; the certificate uses them.
        steps: steps taken; with the seed it determines every random draw.
        inverse: a preconditioner for points near `w`, or None where there is none yet.
        built: the loss where it was built, `(m,)`.
    """

    at: Evaluation | None
    sample: Sample | None = None
    steps: int = 0
    inverse: Inverse | None = None
    built: Array = None


class Solver(Protocol):
    """An algorithm for a family of tasks."""

    def init(self, problem: Problem, w: Array) -> Any:
        """The state (a `SolverState`) before the first step from `w` `(m, p)`."""

    def step(self, problem: Problem, w: Array, state: Any) -> tuple[Array, Any]:
        """One iteration, about one pass: the next `w` and its state."""


def fresh_inverse(state: SolverState, build: Callable[[], Inverse]) -> tuple[Inverse, Array]:
    """The state's preconditioner and the loss where it was built; a new one, at the current point,
    where there is none or a task's loss has fallen below `STALE` of what it was there."""
    assert state.at is not None
    loss = state.at.loss
    if state.inverse is None or bool(namespace(loss).any(loss < STALE * state.built)):
        return build(), loss
    return state.inverse, state.built


def inner(a: Array, b: Array) -> Array:
    """Inner product of each task, `(m,)`."""
    return namespace(a, b).sum(a * b, axis=1)


def check_settings(solver: Any, **least: float) -> None:
    """Refuse a solver's settings that are below these bounds, or not of their default's kind.

    A bound given as an integer asks for an integer; settings that are None are left alone.

    Raises:
        TypeError, ValueError: with the solver's name and the setting's.
    """
    for name, bound in {**least, "seed": 0}.items():
        value, where = getattr(solver, name), f"{type(solver).__name__}({name}=)"
        if value is None:
            continue
        if isinstance(bound, int):
            check_integer(where, value, least=bound)
        else:
            check_real(where, value, above=bound)


def check_fraction(solver: Any, name: str, value: Any) -> None:
    """Refuse a setting that is not between 0 and 1, both excluded."""
    where = f"{type(solver).__name__}({name}=)"
    if not 0.0 < check_real(where, value) < 1.0:
        raise ValueError(f"{where}: expected a number between 0 and 1, found {value}")
