"""pytorch-minimize's l-bfgs and newton-cg, every evaluation of the objective recorded.

Objective: ours, differentiated by autograd. Hessian products cannot be counted through its
interface: newton-cg's passes are its evaluations alone, a lower bound.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.harness.cases import Task
from benchmarks.harness.recorder import Recorder
from benchmarks.peers import Peer


def run(method: str, task: Task, record: Recorder) -> None:
    """Call `torchmin.minimize` with its own stopping rules switched off.

    The unknown is a vector, because its newton-cg takes the rows of a matrix for separate problems.
    """
    from torchmin import minimize

    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    shape = task.k, task.d + 1
    w = torch.zeros(shape, dtype=x.dtype)
    if task.start is not None:
        w.copy_(torch.from_numpy(task.start))

    def objective(flat: torch.Tensor) -> torch.Tensor:
        w = flat.reshape(shape)
        record(w.detach().numpy(), 1.0)
        weights, bias = w[:, :-1], w[:, -1]
        loss = torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, weights, bias), y)
        return loss + 0.5 * task.l2[0] * weights.square().sum()

    # With tolerances of 0 it stops only when rounding leaves nothing to gain.
    options = {"gtol": 0.0, "gtd_tol": 0.0, "xtol": 0.0} if method == "l-bfgs" else {"xtol": 0.0}
    minimize(objective, w.flatten(), method, max_iter=10_000, options=options)


PEERS = {
    f"torchmin {method}": Peer(partial(run, method), "torchmin")
    for method in ("l-bfgs", "newton-cg")
}
