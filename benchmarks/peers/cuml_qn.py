"""cuML's LogisticRegression (L-BFGS, 'qn') on a CUDA device.

Its iterates cannot be watched, so it runs from zero again and again, each time with twice the
iterations, until it arrives or its time is up. Every run gives one point, with the time of that run
alone. The clock includes the copy to the device.

Objective: scikit-learn's, `C sum_i loss_i + 1/2 ||W||^2`, intercept free: `C = 1 / (n l2)`, and for
two classes, where it fits one row, `C = 2 / (n l2)`. Passes are its iterations: a lower bound.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.harness.cases import Task
from benchmarks.harness.recorder import Point, Recorder
from benchmarks.peers import Peer


def no_device(task: Task) -> str | None:
    """Return why it cannot run, if there is no CUDA device."""
    return None if torch.cuda.is_available() else "not run: no CUDA device"


def run(task: Task, record: Recorder) -> None:
    """Run with 2, 4, 8, ... iterations; a first run with one iteration only warms up."""
    from cuml.linear_model import LogisticRegression

    points: list[Point] = []
    for length in (2**i for i in range(14)):
        started = time.perf_counter()
        model = LogisticRegression(
            C=(1 + (task.k == 2)) / (task.n * task.l2[0]), tol=1e-12, max_iter=length,
            penalty="l2", fit_intercept=True, output_type="numpy",
        )  # fmt: skip
        model.fit(task.x, task.y.astype(task.x.dtype))
        seconds = time.perf_counter() - started
        if length == 1:
            continue
        weights, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
        weights = weights if weights.shape[1] == task.d else weights.T
        both = np.concatenate([weights, bias.reshape(-1, 1)], axis=1)
        points.append(Point(seconds, length, both))
        record.replace(list(points))
        record.check(seconds)


PEERS = {"cuml qn": Peer(run, "cuml", no_device)}
