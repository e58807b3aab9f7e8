"""torch.optim.Adam as probe scripts use it: minibatches of 256, 100 epochs, cosine schedule.

Shuffled each epoch, betas of 0.9 and 0.999, learning rates 1e-3 (the usual default), 1e-2 and 1e-1:
each is a competitor, and only the best of all competitors counts, so that the grid costs nothing.
A run starts anew after its 100 epochs, from where it is, for as long as there is time.

Objective: ours, the penalty in the loss (Adam's `weight_decay` would scale the penalty's gradient
as the rest, which is the same, but would also shrink the bias).
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.cases import Task
from benchmarks.competitor import Competitor
from benchmarks.competitors.torch_lbfgs import coefficients, linear
from benchmarks.record import Recorder

BATCH, EPOCHS = 256, 100


def run(rate: float, task: Task, record: Recorder) -> None:
    """Epochs until the recorder ends them; each is one pass."""
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    layer = linear(task)
    generator = torch.Generator().manual_seed(0)
    while True:
        optimiser = torch.optim.Adam(layer.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
        for _ in range(EPOCHS):
            for rows in torch.randperm(task.n, generator=generator).split(BATCH):
                optimiser.zero_grad()
                loss = torch.nn.functional.cross_entropy(layer(x[rows]), y[rows])
                loss = loss + 0.5 * task.l2[0] * layer.weight.square().sum()
                loss.backward()
                optimiser.step()
            schedule.step()
            record(coefficients(layer).numpy(), 1.0)


COMPETITORS = {
    f"torch adam {rate:g}": Competitor(partial(run, rate), "torch", stochastic=True)
    for rate in (1e-3, 1e-2, 1e-1)
}
