"""The simulated device has the rules of CUDA, the values of the CPU, and counts what it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.device.simulated import NAME, DeviceTensor, counted, register

register()


def test_it_is_the_accelerator_of_torch() -> None:
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None and accelerator.type == NAME
    x = torch.ones(3, device=NAME)
    assert type(x) is DeviceTensor and x.device == torch.device(NAME, 0) and not x.is_cuda


def test_its_values_are_those_of_the_cpu() -> None:
    x, w = torch.randn(7, 5), torch.randn(3, 5)
    ours, theirs = x.to(NAME), w.to(NAME)
    assert torch.equal((ours @ theirs.T).softmax(1).cpu(), (x @ w.T).softmax(1))
    view = ours[2:4]
    view += 1.0  # views share their memory
    assert torch.equal(ours.cpu()[2:4], x[2:4] + 1.0)


def test_it_trains_a_network() -> None:
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()), torch.randn(6, 4)
    model(x).sum().backward()
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    model.to(NAME)(x.to(NAME)).sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None and parameter.grad.device.type == NAME
        assert gradient is not None and torch.equal(parameter.grad.cpu(), gradient)


def test_mixed_devices_and_implicit_copies_are_refused() -> None:
    x = torch.ones(3, device=NAME)
    with pytest.raises(RuntimeError, match="on the same device"):
        x + torch.ones(3)
    with pytest.raises(TypeError, match="to numpy"):
        x.numpy()
    with pytest.raises(TypeError, match="to numpy"):
        np.asarray(x)


@pytest.mark.parametrize("name", ["cpu", "item", "bool", "tolist", "mask", "inv", "blocking"])
def test_what_the_host_waits_for_is_counted(name: str) -> None:
    x = torch.eye(3, device=NAME)
    waits = {
        "cpu": lambda: x.cpu(),
        "item": lambda: x[0, 0].item(),
        "bool": lambda: bool((x > 0).all()),
        "tolist": lambda: x.tolist(),
        "mask": lambda: x[x[0] > 0],
        "inv": lambda: torch.linalg.inv(x),
        "blocking": lambda: torch.ones(3).to(NAME),
    }
    with counted() as counts:
        waits[name]()
    assert counts.synchronisations == 1


def test_what_the_host_does_not_wait_for_is_not() -> None:
    x = torch.eye(3, device=NAME)
    with counted() as counts:
        torch.ones(4, 3).to(NAME, non_blocking=True) @ x
        torch.linalg.cholesky_ex(x)
        torch.where(x > 0, x, 0.0).sum(0, dtype=torch.float64)
    assert counts.synchronisations == 0
    assert counts.to_device.total() == 48 and counts.to_host.total() == 0
    assert counts.launches >= 4
