"""cyanure (Mairal 2019): its QNing and Catalyst variants.

Its iterates cannot be watched and a restart would lose its memory. So it runs from zero again and
again, with twice the epochs each time, until it arrives or its time is up. Only the last counts;
its own trace, every fifth epoch, gives the points in between: their suboptimality is that of the
last coefficients by our evaluation, plus how far cyanure's value was above its last one.

Objective: mean loss + lambda_1/2 ||W||^2, free intercept, `lambda_1 = l2`. Two classes: one row `w`
where ours are `-w/2` and `w/2`, so `lambda_1 = l2 / 2`. Passes are the epochs that it reports.
"""

from __future__ import annotations

import time
import warnings
from functools import partial

import numpy as np
import torch

from benchmarks.harness.cases import Task
from benchmarks.harness.recorder import Meter, OutOfTime, Point, Recorder
from benchmarks.peers import Peer

INTERVAL = 5

EPOCHS = tuple(5.0 * round(2.0 ** (i / 2)) for i in range(21))
"""Budgets of epochs, from 5 to 5 120: what a user sets, who stops it as early as can be."""


def fit(solver: str, epochs: int, task: Task) -> tuple[float, np.ndarray, np.ndarray]:
    """Run once; return seconds, coefficients `(k, d + 1)` and the trace.

    The trace's first rows are epochs and objective values, its last one seconds.
    """
    from cyanure.estimators import Classifier

    two = task.k == 2
    model = Classifier(
        loss="logistic" if two else "multiclass-logistic", penalty="l2",
        lambda_1=task.l2[0] / (1 + two), fit_intercept=True, solver=solver, tol=1e-12,
        max_iter=epochs, duality_gap_interval=INTERVAL, verbose=False, random_state=0,
        n_threads=torch.get_num_threads(),
    )  # fmt: skip
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(task.x, task.y)
    seconds = time.perf_counter() - started
    weights = np.reshape(model.coef_, (task.d, -1)).T
    both = np.concatenate([weights, np.reshape(model.intercept_, (-1, 1))], axis=1)
    return seconds, both, np.squeeze(np.asarray(model.optimization_info_), axis=0)


def stopping(solver: str, task: Task, epochs: float, meter: Meter) -> np.ndarray:
    """Run for so many epochs."""
    _, coefficients, trace = fit(solver, int(epochs), task)
    meter.passes += float(trace[0, -1])
    return coefficients


def run(solver: str, task: Task, record: Recorder) -> None:
    """Run with more and more epochs."""
    epochs = INTERVAL
    while True:
        seconds, coefficients, trace = fit(solver, epochs, task)
        # A user also waits before cyanure's own clock starts and after it stops.
        setup = max(0.0, seconds - trace[-1, -1])
        scale = record.scale
        record.replace([
            Point(setup + row[-1], row[0], coefficients, excess=(row[1] - trace[1, -1]) / scale)
            for row in trace.T
        ])  # fmt: skip
        record.check(seconds)
        if trace[0, -1] < epochs - 2 * INTERVAL:
            return  # cyanure stopped by itself
        if seconds > 0.7 * record.limit:
            raise OutOfTime
        epochs = int(min(2.0 * epochs, epochs * record.limit / seconds)) + 1


PEERS = {
    f"cyanure {solver}": Peer(
        partial(run, solver),
        "cyanure",
        stochastic=True,
        fit=partial(stopping, solver),
        settings=EPOCHS,
    )
    for solver in ("qning-miso", "qning-svrg", "catalyst-miso", "catalyst-svrg")
}
