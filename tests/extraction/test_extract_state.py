"""Extraction leaves the model, its hooks and all random states exactly as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from convexprobe.extraction.extract import extract
from tests.extraction.networks import Failing, normal


class Stateful(nn.Module):
    """Changes everything a forward pass can change: buffers, attributes, all random states."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(2))
        self.cached = 2

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.cache, self.cached = torch.ones(len(x)), len(x)
        self.register_buffer("late", torch.ones(1))
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        return x + self.count


def fingerprint(model: nn.Module) -> list[Any]:
    """Everything that must not change, identities included."""
    state: list[Any] = []
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        extra = (module._forward_hooks_with_kwargs, module._forward_pre_hooks_with_kwargs)
        state += [name, module.training, [list(h.items()) for h in hooks + extra]]
        state += [(key, id(value)) for key, value in vars(module).items()]
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state += [name, id(tensor), tensor.tolist(), tensor.requires_grad, id(tensor.grad)]
    legacy = np.random.get_state()  # noqa: NPY002
    state += [random.getstate(), legacy[1].tolist(), legacy[2:], torch.get_rng_state().tolist()]
    return state


def in_training() -> nn.Module:
    """Some of it training, some not; some gradients, a frozen parameter, a hook of the user's."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), Stateful())
    model(normal(4, 3)).sum().backward()
    model.train()
    model[2].eval()
    model[0].bias.requires_grad_(False)
    model[1].register_forward_hook(lambda module, args, output: None)
    return model


def test_everything_is_put_back() -> None:
    model = in_training()
    loader = DataLoader(TensorDataset(normal(9, 3)), batch_size=4, shuffle=True)
    before = fingerprint(model)
    first, _ = extract(model, loader)
    assert fingerprint(model) == before
    second, _ = extract(model, loader)  # the same random states: the same shuffle and rows
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("where", ["forward", "loader", "pool", "hook"])
def test_everything_is_put_back_after_an_error(where: str) -> None:
    model = nn.Sequential(in_training(), Failing(1 if where == "forward" else 99))

    def loader() -> Iterator[Tensor]:
        yield normal(4, 3)
        if where == "loader":
            raise KeyboardInterrupt
        yield normal(4, 4 if where == "hook" else 3)

    before = fingerprint(model)
    pool = (lambda x: x[:, :, 0]) if where == "pool" else "flatten"
    with pytest.raises((RuntimeError, KeyboardInterrupt, IndexError, ValueError)):
        extract(model, loader(), ["1", "0.0:input"], pool=pool)
    assert fingerprint(model) == before


def test_it_runs_in_evaluation_mode_without_gradients() -> None:
    seen: list[tuple[bool, bool]] = []
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).train()
    model[1].register_forward_hook(
        lambda module, args, output: seen.append((module.training, torch.is_grad_enabled()))
    )
    rows, _ = extract(model, [normal(4, 3)])
    assert seen == [(False, False)]
    assert torch.equal(rows["0"], rows["1"])
