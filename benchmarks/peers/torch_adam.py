"""torch.optim.Adam as probe scripts use it: minibatches of 256, 100 epochs, cosine schedule.

Rows are shuffled each epoch; betas are 0.9 and 0.999. Learning rates of 1e-3 (the usual default),
1e-2 and 1e-1 are one peer each: only the best peer counts, so choosing the rate costs it no time.
After 100 epochs the schedule starts again from the present weights, while there is time.

Objective: ours, with the penalty in the loss: Adam's `weight_decay` would also shrink the bias.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.harness.cases import Task
from benchmarks.harness.recorder import Recorder
from benchmarks.peers import Peer
from benchmarks.peers.torch_lbfgs import coefficients, linear

BATCH, EPOCHS = 256, 100


def run(rate: float, task: Task, record: Recorder) -> None:
    """Run epochs, one pass each, until the recorder ends the run."""
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


PEERS = {
    f"torch adam {rate:g}": Peer(partial(run, rate), "torch", stochastic=True)
    for rate in (1e-3, 1e-2, 1e-1)
}
