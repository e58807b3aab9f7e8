"""Extraction leaves the model, its hooks and all random states exactly as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from convexprobe.extraction.extract import extract
from tests.extraction.networks import Failing, normal


class Stateful(nn.Module):
    """Changes all that a forward pass can change: buffers, attributes, modules, random states."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(2))
        self.cached = 2

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.cache, self.cached = torch.ones(len(x)), len(x)
        self.register_buffer("late", torch.ones(1))
        self.add_module("later", nn.Identity())
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


def test_threads_that_extract_from_one_model_leave_it_as_it_was() -> None:
    body = in_training()
    model, x = nn.Sequential(body, nn.Identity()), list(normal(8, 3).split(2))
    before = fingerprint(model)
    expected = extract(model, x, "0.0")[0]["0.0"], extract(body, x, "0")[0]["0"]

    def run(number: int) -> bool:
        rows, _ = extract(*((body, x, "0") if number % 2 else (model, x, "0.0")))
        return torch.equal(next(iter(rows.values())), expected[number % 2])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(40)))
    # random states are the process's, of which every thread keeps what it found
    assert fingerprint(model)[:-4] == before[:-4]


@pytest.mark.filterwarnings("ignore")  # torch calls half of its layouts prototypes
def test_buffers_of_every_layout_are_put_back() -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.coo.mul_(2)
            self.csr.mul_(2)
            return x + self.coo.to_dense()[0] + self.csr.to_dense()[0]

    model, eye = Counting(), torch.eye(3)
    for name, buffer in {
        "coo": eye.to_sparse(),
        "csr": eye.to_sparse_csr(),
        "nested": torch.nested.nested_tensor([eye, eye[:2]]),
        "empty": torch.empty(0),
    }.items():
        model.register_buffer(name, buffer)
    rows, _ = extract(nn.Sequential(model), list(normal(4, 3).split(2)), "0")
    assert rows["0"].shape == (4, 3)
    assert torch.equal(model.coo.to_dense(), eye) and torch.equal(model.csr.to_dense(), eye)


def test_a_model_whose_weights_are_offloaded_is_probed(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    x = list(normal(6, 3).split(2))

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))

    for offload in (
        accelerate.cpu_offload,
        lambda m: accelerate.cpu_offload(m, offload_buffers=True),
        lambda m: accelerate.disk_offload(m, tmp_path),
    ):
        whole = model()
        expected, _ = extract(whole, x)
        offloaded = offload(whole)
        for layers in (None, "0"):  # in full and up to a first layer
            rows, _ = extract(offloaded, x, layers)
            assert all(torch.equal(rows[name], expected[name]) for name in rows)
            assert all(parameter.is_meta for parameter in offloaded.parameters())
    with pytest.raises(ValueError, match=r"'0\.weight' is on the meta device and has no values"):
        extract(model().to("meta"), x)
    with pytest.warns(UserWarning, match="parameter or buffer '0.weight' holds values that cannot"):
        extract(offloaded, x, out=tmp_path / "out")
