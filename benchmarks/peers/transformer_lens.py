"""TransformerLens's sparse probing tool: float64 L-BFGS and damped Newton steps, two classes.

Its function `_fit_logistic` is called as its probes call it, with all features selected. Only the
file that holds it is imported: the package itself needs much that has nothing to do with probes.

Objective: mean loss + l2_strength/2 ||w||^2 of one row `w` where ours are `-w/2` and `w/2`, so
`l2_strength = l2 / 2`. Passes are its evaluations of the objective; a Newton step with its dense
Hessian counts as one too, a lower bound.
"""

from __future__ import annotations

import sys
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.harness.cases import Task
from benchmarks.harness.recorder import Meter, Recorder
from benchmarks.peers import TOLS, Peer

ITERATIONS = tuple(float(round(2.0 ** (i / 2))) for i in range(4, 25))
"""Budgets of L-BFGS iterations, from 4 to 4 096."""

PARENTS = ("transformer_lens", "transformer_lens.tools", "transformer_lens.tools.analysis")


@cache
def tool() -> ModuleType:
    """Import the one module; its parent packages are put in place without running them."""
    origin = find_spec("transformer_lens")
    if origin is None or origin.origin is None:
        raise ImportError("transformer_lens")
    added = [name for name in PARENTS if name not in sys.modules]
    for name in added:
        sys.modules[name] = ModuleType(name)
        folder = Path(origin.origin).parent.joinpath(*name.split(".")[1:])
        sys.modules[name].__path__ = [str(folder)]
    try:
        return import_module("transformer_lens.tools.analysis.sparse_probing")
    finally:
        for name in added:
            del sys.modules[name]


def refuses(task: Task) -> str | None:
    """Return why it cannot run: more than two classes, a large dense Hessian, no module."""
    if task.k != 2:
        return "not run: two classes only"
    if task.d > 2500:
        return f"not run: Hessian of {task.d + 1} unknowns"
    try:
        tool()
    except ImportError as error:
        return f"not installed: {error.name or error}"
    return None


def fit(
    task: Task, record: Recorder | Meter, iterations: int, steps: int, decrement: float
) -> np.ndarray:
    """Fit with so many L-BFGS iterations and Newton steps at most; return `(1, d + 1)`."""
    module = tool()
    kept = {name: getattr(module, name) for name in ("_objective", "_newton_direction")}

    def spied(name: str) -> Any:
        def call(x: Any, y: Any, parameters: torch.Tensor, *rest: Any) -> Any:
            result = kept[name](x, y, parameters, *rest)
            record(parameters.detach().numpy()[None, :], 1.0)
            return result

        return call

    x = torch.from_numpy(task.x).double()
    try:
        for name in kept:
            setattr(module, name, spied(name))
        out = module._fit_logistic(
            x, torch.from_numpy(task.y) == 1, class_weight=None, l2_strength=task.l2[0] / 2,
            max_iter=iterations, max_refinement_steps=steps, decrement_tolerance=decrement,
        )  # fmt: skip
    finally:
        for name, function in kept.items():
            setattr(module, name, function)
    return torch.cat([out.coefficients, out.intercept[None]]).numpy()[None, :]


def lbfgs(task: Task, iterations: float, meter: Meter) -> np.ndarray:
    """L-BFGS alone; its check by one Newton direction is part of the tool."""
    return fit(task, meter, int(iterations), 0, inf)


def newton(task: Task, tol: float, meter: Meter) -> np.ndarray:
    """Newton steps alone, after two L-BFGS iterations, until the decrement is `tol` nats."""
    return fit(task, meter, 2, 100, tol)


def run(iterations: int, task: Task, record: Recorder) -> None:
    """Run to a decrement of 1e-12, the tool's default."""
    fit(task, record, iterations, 100, 1e-12)


PEERS = {
    "transformer-lens lbfgs": Peer(
        partial(run, 10_000), "transformer_lens", refuses, fit=lbfgs, settings=ITERATIONS
    ),
    "transformer-lens newton": Peer(
        partial(run, 2), "transformer_lens", refuses, fit=newton, settings=TOLS
    ),
}
