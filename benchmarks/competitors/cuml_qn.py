"""cuML's LogisticRegression (L-BFGS, 'qn') on a CUDA device.

Its iterates cannot be watched: the same run is made from zero with twice the iterations until it
arrives or has used its time; the last run's points are those of each length. The clock includes the
copy to the device.

Objective: scikit-learn's, `C sum_i loss_i + 1/2 ||W||^2`, intercept free: `C = 1 / (n l2)`, and for
two classes, where it fits one row, `C = 2 / (n l2)`. Passes are its iterations: a lower bound.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.cases import Task
from benchmarks.competitor import Competitor
from benchmarks.record import Point, Recorder


def no_device(task: Task) -> str | None:
    """Whether a CUDA device is missing."""
    return None if torch.cuda.is_available() else "not run: no CUDA device"


def run(task: Task, record: Recorder) -> None:
    """Longer and longer runs; the first, of one iteration, only warms up."""
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


COMPETITORS = {"cuml qn": Competitor(run, "cuml", no_device)}
