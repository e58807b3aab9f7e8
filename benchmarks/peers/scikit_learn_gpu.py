"""scikit-learn on a CUDA device: lbfgs, its only solver that takes torch CUDA tensors (array API).

Needs `SCIPY_ARRAY_API=1` in the environment before anything imports SciPy. The clock includes the
copy to the device. Objective, scaling and recording are those of `scikit_learn.py`.
"""

from __future__ import annotations

import os

import sklearn
import torch

from benchmarks.harness.cases import Task
from benchmarks.harness.recorder import Recorder
from benchmarks.peers import Peer
from benchmarks.peers.scikit_learn import fit


def missing(task: Task) -> str | None:
    """Return why it cannot run: no CUDA device, or the variable is not set."""
    if not torch.cuda.is_available():
        return "not run: no CUDA device"
    return None if os.environ.get("SCIPY_ARRAY_API") == "1" else "not run: SCIPY_ARRAY_API is not 1"


def run(task: Task, record: Recorder) -> None:
    """Call `LogisticRegression.fit` on the device."""
    with sklearn.config_context(array_api_dispatch=True):
        x = torch.from_numpy(task.x).cuda()
        fit("lbfgs", task, record, x, torch.from_numpy(task.y).cuda())


PEERS = {"sklearn lbfgs cuda": Peer(run, "sklearn", missing)}
