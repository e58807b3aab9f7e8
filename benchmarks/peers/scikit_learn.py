"""scikit-learn's lbfgs, newton-cg and newton-cholesky, every evaluation of the loss recorded.

Objective: scikit-learn minimises `C sum_i loss_i + 1/2 ||W||^2` with a free intercept, which at
`C = 1 / (n l2)` is ours times `C n`. Two classes: it fits one row `w` where ours are `-w/2` and
`w/2`, so that the same penalty is `l2/4 ||w||^2` and `C = 2 / (n l2)`.

newton-cholesky factors the dense Hessian of `k (d + 1)` unknowns: it runs on at most 2 500 of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model._linear_loss import LinearModelLoss

from benchmarks.harness.cases import Task
from benchmarks.harness.recorder import Meter, Recorder
from benchmarks.peers import Peer

PASSES = {
    "loss_gradient": 1.0,
    "loss": 0.5,
    "gradient": 1.0,
    "gradient_hessian": 1.0,
    "gradient_hessian_product": 1.0,
}


def spy(method: Callable, passes: float, record: Recorder | Meter) -> Callable:
    """Wrap a method of the loss to record the coefficients and count passes.

    Where the method returns a function for Hessian products, each call of that is a pass too.
    """

    def counted(product: Callable, v: Any) -> Any:
        record.passes += 1.0
        return product(v)

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        record(args[0] if args else kwargs["coef"], passes)
        if isinstance(result, tuple) and callable(result[-1]):
            return *result[:-1], partial(counted, result[-1])
        return result

    return recorded


def run(solver: str, task: Task, record: Recorder) -> None:
    """Call `LogisticRegression(solver).fit` with its own stopping rule switched off."""
    fit(solver, task, record, task.x, task.y)


def stopping(solver: str, task: Task, tol: float, meter: Meter) -> np.ndarray:
    """Call it with its own `tol`."""
    return fit(solver, task, meter, task.x, task.y, tol)


def fit(
    solver: str, task: Task, record: Recorder | Meter, x: Any, y: Any, tol: float = 1e-12
) -> np.ndarray:
    """Fit the task, its rows and labels given as arrays of any library; return coefficients."""
    scale = 2.0 if task.k == 2 else 1.0
    model = LogisticRegression(
        C=scale / (task.n * task.l2[0]), solver=solver, tol=tol, max_iter=10_000
    )
    if task.start is not None and task.k > 2:
        model.set_params(warm_start=True)
        model.coef_, model.intercept_ = task.start[:, :-1], task.start[:, -1]
        model.classes_ = np.arange(task.k)
    kept = {name: getattr(LinearModelLoss, name) for name in PASSES}
    try:
        for name, method in kept.items():
            setattr(LinearModelLoss, name, spy(method, PASSES[name], record))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x, y)
    finally:
        for name, method in kept.items():
            setattr(LinearModelLoss, name, method)
    return np.column_stack([model.coef_, model.intercept_])


def dense_hessian(task: Task) -> str | None:
    """Return why it cannot run, if the Hessian is too large."""
    size = task.k * (task.d + 1)
    return f"not run: Hessian of {size} unknowns" if size > 2500 else None


PEERS = {
    f"sklearn {solver}": Peer(
        partial(run, solver),
        "sklearn",
        dense_hessian if solver == "newton-cholesky" else lambda task: None,
        fit=partial(stopping, solver),
    )
    for solver in ("lbfgs", "newton-cg", "newton-cholesky")
}
