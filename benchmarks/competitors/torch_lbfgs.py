"""torch.optim.LBFGS with its strong Wolfe line search, every closure call recorded.

Objective: written as it is here, by autograd.
"""

from __future__ import annotations

import torch

from benchmarks.cases import Task
from benchmarks.competitor import Competitor
from benchmarks.record import Recorder


def linear(task: Task, device: str = "cpu") -> torch.nn.Linear:
    """The layer at its start, zero or the neighbour on the path."""
    x = torch.from_numpy(task.x)
    layer = torch.nn.utils.skip_init(torch.nn.Linear, task.d, task.k, dtype=x.dtype, device=device)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    if task.start is not None:
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(task.start[:, :-1]))
            layer.bias.copy_(torch.from_numpy(task.start[:, -1]))
    return layer


def coefficients(layer: torch.nn.Linear) -> torch.Tensor:
    """`(k, d + 1)` on the host."""
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach().cpu()


def run(task: Task, record: Recorder) -> None:
    """History of 10, until the recorder ends it or rounding does."""
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    layer = linear(task)
    optimiser = torch.optim.LBFGS(
        layer.parameters(), max_iter=10_000, max_eval=10**6, tolerance_grad=0,
        tolerance_change=0, history_size=10, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(x), y)
        loss = loss + 0.5 * task.l2[0] * layer.weight.square().sum()
        loss.backward()
        record(coefficients(layer).numpy(), 1.0)
        return loss

    optimiser.step(closure)


COMPETITORS = {"torch lbfgs": Competitor(run, "torch")}
