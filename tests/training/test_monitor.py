"""The training is what it would be without the monitor, bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convexprobe as cxp
from tests.tiny import bits, checkpoints, network, rows, sweep

X, Y = rows()


def train(monitor: cxp.ProbeMonitor | None, steps: int = 10) -> dict[str, Any]:
    """A training whose every draw is global; returns all that a monitor could change."""
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)
        model = network()
        model[1].eval()  # frozen batch norm: its flag is to stay
        optimizer = torch.optim.Adam(model.parameters(), 3e-2)
        loader = DataLoader(TensorDataset(X, Y), batch_size=32, shuffle=True)
        losses = []
        for step in range(steps):
            if monitor is not None:
                monitor.record(model, step)
            for x, y in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x * random.random()), y)
                (loss * np.random.rand()).backward()  # noqa: NPY002
                optimizer.step()
                losses.append(loss.item())
        return {
            "losses": losses,
            "state": [v.numpy().tobytes() for v in model.state_dict().values()],
            "gradients": [p.grad.numpy().tobytes() for p in model.parameters()],
            "optimizer": repr(optimizer.state_dict()),
            "flags": [m.training for m in model.modules()],
            "torch": torch.get_rng_state().numpy().tobytes(),
            "numpy": repr(np.random.get_state()),  # noqa: NPY002
            "python": random.getstate(),
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        }
    finally:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        random.setstate(state[2])


@pytest.mark.parametrize("kind", ["tensors", "shuffled loader", "disk"])
def test_training_is_bit_for_bit_what_it_would_be(kind: str, tmp_path: Any) -> None:
    data: tuple[Any, ...] = (X, Y)
    if kind == "shuffled loader":  # the seed is fixed while it is read: the same order every time
        data = (DataLoader(TensorDataset(X, Y), batch_size=40, shuffle=True),)
    monitor = cxp.ProbeMonitor(*data, l2=1e-2, out=tmp_path if kind == "disk" else None)
    assert train(monitor) == train(None)
    assert list(monitor.history) == list(range(10)) and not monitor.history.failures


def test_a_monitor_and_a_sweep_find_the_same(tmp_path: Any) -> None:
    steps = checkpoints()
    monitor = cxp.ProbeMonitor(X, Y, l2=1e-2, test=rows(60, seed=2))
    for step, state in steps:
        model = network()
        model.load_state_dict(state)
        monitor.record(model.train(), step)
    assert bits(monitor.history) == bits(sweep(steps))


def test_a_monitor_goes_on_where_it_was(tmp_path: Any) -> None:
    whole = cxp.ProbeMonitor(X, Y, l2=1e-2)
    train(whole)
    train(cxp.ProbeMonitor(X, Y, l2=1e-2, out=tmp_path), steps=6)
    again = cxp.ProbeMonitor(X, Y, l2=1e-2, out=tmp_path)
    train(again)
    assert bits(again.history) == bits(whole.history)
    with pytest.warns(UserWarning, match="step 3 is recorded already, with other weights"):
        assert again.record(network(99), 3) is None
    again.close()
    with pytest.raises(ValueError, match="recorded already, with other weights"):
        cxp.ProbeMonitor(X, Y, l2=1e-2, out=tmp_path, on_error="raise").record(network(99), 3)


def test_a_network_that_diverges_is_noted_and_training_goes_on() -> None:
    monitor = cxp.ProbeMonitor(X, Y, l2=1e-2)
    monitor.record(network(), 0)
    broken = network()
    with torch.no_grad():
        broken[0].weight.fill_(float("nan"))
    with pytest.warns(UserWarning, match="step 1: .*expected finite values, found nan in row 0"):
        assert monitor.record(broken, 1) is None
    assert monitor.record(network(2), 2) is not None
    assert list(monitor.history) == [0, 2] and monitor.history.failures[0][0] == "step 1"
    with pytest.raises(ValueError, match="finite"):  # the first time it may be the call that errs
        cxp.ProbeMonitor(X, Y, l2=1e-2).record(broken, 0)


def test_rows_that_change_are_refused() -> None:
    class Drifting:
        def __init__(self) -> None:
            self.count = 0

        def __iter__(self) -> Any:
            self.count += 1
            yield X, Y.roll(self.count)

    monitor = cxp.ProbeMonitor(Drifting(), l2=1e-2, on_error="raise")
    monitor.record(network(), 0)
    with pytest.raises(ValueError, match="labels of step 0, in the same order"):
        monitor.record(network(1), 1)
    with pytest.raises(TypeError, match="iterated over again"):
        cxp.ProbeMonitor(iter([(X, Y)]))
    with pytest.raises(ValueError, match="batches with labels"):
        cxp.ProbeMonitor([X], l2=1e-2).record(network(), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"l2": [1e-2, 1e-3]}, "one number"),
        ({"tol": 0}, "tol: expected a number above 0"),
        ({"warm_start": "hot"}, "warm_start"),
        ({"on_error": "ignore"}, "on_error"),
        ({"solver": "newton"}, "newton-cg"),
        ({"test": X}, "a pair"),
        ({"test": (X, Y[:3])}, "test: expected one label a row"),
    ],
)
def test_arguments_are_refused_at_the_door(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        cxp.ProbeMonitor(X, Y, **settings)
    with pytest.raises(ValueError, match="step: expected"):
        cxp.ProbeMonitor(X, Y).record(network(), -1)
