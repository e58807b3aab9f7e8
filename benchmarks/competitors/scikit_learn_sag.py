"""scikit-learn's sag and saga: `sag_solver`, which `LogisticRegression` calls, epoch by epoch.

Called directly because it hands its memory (table, sums, rows seen) from one call to the next,
which `LogisticRegression(warm_start=True)` drops. What a call does again that one long run does
once (the step size from the row norms) is given to it ready; a seed an epoch gives fresh orders.

Objective: mean loss + alpha/(2 n) ||W||^2, free intercept, `alpha = n l2`. Two classes: one row `w`
where ours are `-w/2` and `w/2`, so `alpha = n l2 / 2`.
"""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
from sklearn.linear_model._sag import sag_solver
from sklearn.utils.extmath import row_norms

from benchmarks.cases import Task
from benchmarks.competitor import Competitor
from benchmarks.record import Recorder


def run(saga: bool, task: Task, record: Recorder) -> None:
    """Epochs until the recorder ends them; each is one pass."""
    two = task.k == 2
    y = task.y.astype(task.x.dtype)
    first = np.zeros((task.d + 1, 1 if two else task.k), dtype=task.x.dtype)
    if task.start is not None and not two:
        first[:] = task.start.T
    memory = {"coef": first}
    largest = row_norms(task.x, squared=True).max()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one epoch did not converge
        for epoch in range(100_000):
            _, _, memory = sag_solver(
                task.x, y, None, "log" if two else "multinomial", task.n * task.l2[0] / (1 + two),
                0.0, 1, 0.0, 0, epoch, False, largest, memory, is_saga=saga,
            )  # fmt: skip
            record(memory["coef"].T, 1.0)


COMPETITORS = {
    "sklearn sag": Competitor(partial(run, False), "sklearn", stochastic=True),
    "sklearn saga": Competitor(partial(run, True), "sklearn", stochastic=True),
}
