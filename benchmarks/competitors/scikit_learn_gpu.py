"""scikit-learn's array API mode: lbfgs, its one solver that has it, on torch CUDA tensors.

Needs `SCIPY_ARRAY_API=1` in the environment before anything imports SciPy. The clock includes the
copy to the device. Objective, scaling and recording are those of `scikit_learn.py`.
"""

from __future__ import annotations

import os

import sklearn
import torch

from benchmarks.cases import Task
from benchmarks.competitor import Competitor
from benchmarks.competitors.scikit_learn import fit
from benchmarks.record import Recorder


def missing(task: Task) -> str | None:
    """What it needs and has not."""
    if not torch.cuda.is_available():
        return "not run: no CUDA device"
    return None if os.environ.get("SCIPY_ARRAY_API") == "1" else "not run: SCIPY_ARRAY_API is not 1"


def run(task: Task, record: Recorder) -> None:
    """`LogisticRegression.fit` on the device."""
    with sklearn.config_context(array_api_dispatch=True):
        x = torch.from_numpy(task.x).cuda()
        fit("lbfgs", task, record, x, torch.from_numpy(task.y).cuda())


COMPETITORS = {"sklearn lbfgs cuda": Competitor(run, "sklearn", missing)}
