"""What a solver is, and what solvers share.

A solver is a frozen record of settings. It sees vectors `(m, p)` and a `Problem`; it holds no data,
prints nothing, and leaves the clock, the budget and stopping to the loop (`solvers.loop`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from convexprobe._arguments import check_integer, check_real, shown
from convexprobe.arrays.backend import Array, namespace, to_numpy
from convexprobe.problem.objective import Evaluation, Problem
from convexprobe.problem.preconditioners import Inverse
from convexprobe.problem.row_sample import Sample


@dataclass
class SolverState:
    """What a solver carries from step to step; arrays have the task axis first.

    Attributes:
        at: the evaluation at the current `w`, or None if the step made none over all rows.
        sample: rows evaluated at the current `w`, or None; the certificate uses them.
        steps: steps taken; with the seed it determines every random draw.
        inverse: a preconditioner for points near `w`, or None before the first.
        built: the losses where it was built, `(m,)`, on the host once one was built.
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


def losses(at: Evaluation) -> np.ndarray:
    """The losses of an evaluation, host `(m,)`, which the loop has read."""
    return to_numpy(at.loss) if at.host is None else at.host.loss


def has_fallen(state: SolverState, fraction: float) -> bool:
    """Whether a task's loss is below this fraction of what it was at the last build."""
    assert state.at is not None
    return bool((losses(state.at) < fraction * to_numpy(state.built)).any())


def fresh_inverse(
    state: SolverState, build: Callable[[], Inverse], *, fraction: float = 0.6
) -> tuple[Inverse, Array]:
    """The state's preconditioner and the losses where it was built.

    Builds one at the current point if there is none, or if a loss `has_fallen` to the fraction.
    """
    assert state.at is not None
    if state.inverse is None or has_fallen(state, fraction):
        return build(), losses(state.at)
    return state.inverse, to_numpy(state.built)


def inner(a: Array, b: Array) -> Array:
    """Inner product of each task, `(m,)`."""
    return namespace(a, b).sum(a * b, axis=1)


def check_settings(solver: Any, **least: float) -> None:
    """Refuse settings that are not above these bounds, or not of the bounds' type; None is fine.

    An integer is the smallest value allowed, and asks for integers. A preconditioner has to be one,
    or None where that is the default.

    Raises:
        TypeError, ValueError: with the solver's name and the setting's.
    """
    for setting in fields(solver):
        recipe = getattr(solver, setting.name)
        if setting.name != "preconditioner" or (recipe is None and setting.default is None):
            continue
        if isinstance(recipe, type) or not callable(getattr(recipe, "build", None)):
            raise TypeError(
                f"{type(solver).__name__}(preconditioner=): expected a preconditioner, such as "
                f"Curvature(), found {shown(recipe)}"
            )
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
