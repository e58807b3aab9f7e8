"""cyanure-gpu: cyanure's QNing and Catalyst around ISTA in plain torch, on a GPU or a processor.

As with cyanure its iterates cannot be watched: it runs from zero again and again, with twice the
epochs each time, until it arrives or its time is up, and only the last run counts.

Objective: mean loss + lambda_1/2 ||W||^2, free intercept, `lambda_1 = l2`. Two classes: one row `w`
where ours are `-w/2` and `w/2`, so `lambda_1 = l2 / 2`. With more than two classes and an
intercept, version 1.0.3 leaves the last feature without a penalty, so it is given a last column of
zeros. It calculates in float32. Its duality gap is computed once, at the end: it would stop too
early where that stands still. Passes are the epochs that it reports, each of them at least two
reads of the rows.
"""

from __future__ import annotations

import logging
import time
import warnings
from functools import partial

import numpy as np

from benchmarks.harness.cases import Task
from benchmarks.harness.recorder import Meter, OutOfTime, Point, Recorder
from benchmarks.peers import Peer
from benchmarks.peers.cyanure_solvers import EPOCHS


def fit(solver: str, epochs: int, task: Task) -> tuple[np.ndarray, float]:
    """Run once; return coefficients `(k, d + 1)` and the epochs done."""
    from cyanure_gpu.estimators import Classifier

    logging.disable(logging.WARNING)
    two, x = task.k == 2, task.x.astype(np.float32, copy=False)
    if not two:
        x = np.concatenate([x, np.zeros((task.n, 1), x.dtype)], axis=1)
    model = Classifier(
        loss="logistic" if two else "multiclass-logistic", penalty="l2", fit_intercept=True,
        lambda_1=task.l2[0] / (1 + two), solver=solver, tol=1e-12, max_iter=epochs,
        duality_gap_interval=epochs, verbose=False,
    )  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x, task.y)
    finally:
        logging.disable(logging.NOTSET)
    weights = np.reshape(model.coef_, (x.shape[1], -1))[: task.d].T
    both = np.concatenate([weights, np.reshape(model.intercept_, (-1, 1))], axis=1)
    return both, float(model.n_iter_[0])


def stopping(solver: str, task: Task, epochs: float, meter: Meter) -> np.ndarray:
    """Run for so many epochs."""
    coefficients, done = fit(solver, int(epochs), task)
    meter.passes += done
    return coefficients


def run(solver: str, task: Task, record: Recorder) -> None:
    """Run with more and more epochs."""
    for epochs in EPOCHS:
        started = time.perf_counter()
        coefficients, done = fit(solver, int(epochs), task)
        seconds = time.perf_counter() - started
        record.replace([Point(seconds, done, coefficients)])
        record.check(seconds)
        if seconds > 0.7 * record.limit:
            raise OutOfTime


PEERS = {
    f"cyanure-gpu {solver}": Peer(
        partial(run, solver), "cyanure_gpu", fit=partial(stopping, solver), settings=EPOCHS
    )
    for solver in ("qning-ista", "catalyst-ista")
}
