"""A tiny network with data and checkpoints, for tests of sweeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import convexprobe as cxp

SETTINGS: dict[str, Any] = {"l2": 1e-2, "progress": False}


def network(seed: int = 0) -> nn.Module:
    """A network 8 -> 12 -> 3 with batch norm; the global random state is not touched.

    The layer before the batch norm has no bias, whose gradient would be zero up to rounding: Adam
    would turn the rounding into steps, so that every number of threads trains another network.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = [nn.Linear(8, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2)]
        return nn.Sequential(*layers, nn.Linear(12, 3))


def rows(count: int = 150, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs, and three classes that are not linearly separable."""
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0.3).long()


def checkpoints(count: int = 5, every: int = 3) -> list[tuple[int, dict[str, Tensor]]]:
    """The steps and state dicts of a short training."""
    model, (x, y) = network(), rows()
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    states = []
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        for step in range((count - 1) * every + 1):
            if step % every == 0:
                states.append((step, {k: v.clone() for k, v in model.state_dict().items()}))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return states


def sweep(steps: Any = None, model: nn.Module | None = None, **settings: Any) -> cxp.ProbeHistory:
    """Probes at these checkpoints, or at those of the short training."""
    steps = checkpoints() if steps is None else steps
    settings = {"test": rows(60, seed=2), **SETTINGS, **settings}
    return cxp.probe_checkpoints(model or network(7), steps, *rows(), **settings)


def bits(history: cxp.ProbeHistory) -> dict[Any, Any]:
    """Everything in a history but the times, to be compared bit by bit."""
    out: dict[Any, Any] = {}
    for entry in history.entries:
        out[entry.step] = entry.duplicate_of, entry.weights, entry.labels
        for r in entry.layers:
            out[entry.step, r.layer] = {k: v for k, v in vars(r).items() if k != "seconds"}
        for name, probe in history[entry.step].items():
            arrays = torch.as_tensor(probe.weights), torch.as_tensor(probe.bias)
            out[entry.step, name, "probe"] = [a.numpy().tobytes() for a in arrays]
    return out
