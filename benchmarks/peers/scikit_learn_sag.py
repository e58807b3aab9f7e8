"""scikit-learn's sag and saga: epoch by epoch, by calling its `sag_solver`.

`LogisticRegression` calls the same function, but its `warm_start=True` drops the solver's memory
(table, sums, rows seen), which `sag_solver` hands from one call to the next. The row norms for the
step size are computed once, as in one long run; each epoch has a seed, and so an order, of its own.

Objective: mean loss + alpha/(2 n) ||W||^2, free intercept, `alpha = n l2`. Two classes: one row `w`
where ours are `-w/2` and `w/2`, so `alpha = n l2 / 2`.
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
from sklearn.linear_model._sag import sag_solver
from sklearn.utils.extmath import row_norms

from benchmarks.harness.cases import Task
from benchmarks.harness.recorder import Recorder
from benchmarks.peers import Peer


def run(saga: bool, task: Task, record: Recorder) -> None:
    """Run epochs, one pass each, until the recorder ends the run."""
    two = task.k == 2
    y = task.y.astype(task.x.dtype)
    first = np.zeros((task.d + 1, 1 if two else task.k), dtype=task.x.dtype)
    if task.start is not None and not two:
        first[:] = task.start.T
    memory = {"coef": first}
    largest = row_norms(task.x, squared=True).max()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns that one epoch did not converge
        for epoch in range(100_000):
            _, _, memory = sag_solver(
                task.x, y, None, "log" if two else "multinomial", task.n * task.l2[0] / (1 + two),
                0.0, 1, 0.0, 0, epoch, False, largest, memory, is_saga=saga,
            )  # fmt: skip
            record(memory["coef"].T, 1.0)


PEERS = {
    "sklearn sag": Peer(partial(run, False), "sklearn", stochastic=True),
    "sklearn saga": Peer(partial(run, True), "sklearn", stochastic=True),
}
