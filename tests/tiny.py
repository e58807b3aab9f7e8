"""A tiny network, its data and its checkpoints: what tests of sweeps run on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import convexprobe as cxp

SETTINGS: dict[str, Any] = {"l2": 1e-2, "progress": False}


def network(seed: int = 0) -> nn.Module:
    """8 -> 12 -> 3, with batch norm; without touching the global random state.

    The layer before the batch norm has no bias: its gradient would be zero up to rounding, which
    Adam makes steps of, and so every number of threads would train another network.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = [nn.Linear(8, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2)]
        return nn.Sequential(*layers, nn.Linear(12, 3))


def rows(count: int = 150, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs and three classes of them that are not linearly separable."""
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0.3).long()


def checkpoints(count: int = 5, every: int = 3) -> list[tuple[int, dict[str, Tensor]]]:
    """(step, state dict) of a short training."""
    model, (x, y) = network(), rows()
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    found = []
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        for step in range((count - 1) * every + 1):
            if step % every == 0:
                found.append((step, {k: v.clone() for k, v in model.state_dict().items()}))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return found


def sweep(steps: Any = None, model: nn.Module | None = None, **settings: Any) -> cxp.ProbeHistory:
    """The tiny sweep."""
    steps = checkpoints() if steps is None else steps
    settings = {"test": rows(60, seed=2), **SETTINGS, **settings}
    return cxp.probe_checkpoints(model or network(7), steps, *rows(), **settings)


def bits(history: cxp.ProbeHistory) -> dict[Any, Any]:
    """Everything in it but the times, for comparison."""
    out: dict[Any, Any] = {}
    for entry in history.entries:
        out[entry.step] = entry.duplicate_of, entry.weights, entry.labels
        for r in entry.layers:
            out[entry.step, r.layer] = {k: v for k, v in vars(r).items() if k != "seconds"}
        for name, probe in history[entry.step].items():
            arrays = torch.as_tensor(probe.weights), torch.as_tensor(probe.bias)
            out[entry.step, name, "probe"] = [a.numpy().tobytes() for a in arrays]
    return out
