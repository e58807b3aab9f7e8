"""torch.optim.LBFGS with its strong Wolfe line search, every closure call recorded.

Objective: ours, differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from benchmarks.harness.cases import Task
from benchmarks.harness.recorder import Meter, Recorder
from benchmarks.peers import Peer


def linear(task: Task) -> torch.nn.Linear:
    """Return the layer to train, with the task's start or zero as its parameters."""
    x = torch.from_numpy(task.x)
    layer = torch.nn.utils.skip_init(torch.nn.Linear, task.d, task.k, dtype=x.dtype)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    if task.start is not None:
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(task.start[:, :-1]))
            layer.bias.copy_(torch.from_numpy(task.start[:, -1]))
    return layer


def coefficients(layer: torch.nn.Linear) -> torch.Tensor:
    """Return the layer's coefficients `(k, d + 1)` on the host."""
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach().cpu()


def lbfgs(parameters: Iterable[torch.Tensor], tol: float = 0.0) -> torch.optim.LBFGS:
    """Return the optimiser with a history of 10 that stops at a gradient of `tol`, or never."""
    return torch.optim.LBFGS(
        parameters, max_iter=10_000, max_eval=10**6, tolerance_grad=tol,
        tolerance_change=0, history_size=10, line_search_fn="strong_wolfe",
    )  # fmt: skip


def run(task: Task, record: Recorder) -> None:
    """Run until the recorder ends it, or rounding leaves nothing to gain."""
    fit(task, 0.0, record)


def fit(task: Task, tol: float, record: Recorder | Meter) -> np.ndarray:
    """Run until no entry of the gradient is above `tol`; return coefficients."""
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    layer = linear(task)
    optimiser = lbfgs(layer.parameters(), tol)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(x), y)
        loss = loss + 0.5 * task.l2[0] * layer.weight.square().sum()
        loss.backward()
        record(coefficients(layer).numpy(), 1.0)
        return loss

    optimiser.step(closure)
    return coefficients(layer).numpy()


PEERS = {"torch lbfgs": Peer(run, "torch", fit=fit)}
