"""Models on the device: extraction, monitors, sweeps over checkpoints. All of them stay there."""

from __future__ import annotations

import pytest
import torch

import convexprobe as cxp
from convexprobe._random_state import random_states_kept
from convexprobe.probes import layer
from tests.device.simulated import MODULE, NAME, DeviceTensor, counted, register
from tests.tiny import checkpoints, network, rows, sweep

register()


@pytest.fixture(autouse=True)
def torch_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "in_numpy", lambda sources, columns: sources)


@pytest.mark.parametrize("where", ["cpu", NAME])
@pytest.mark.parametrize("inference", [False, True])
def test_activations_of_a_model_on_the_device_are_those_of_the_cpu(
    where: str, inference: bool
) -> None:
    x, y = rows()
    expected, _ = cxp.extract(network(), [(x, y)], pool="flatten")
    model = network().to(NAME)
    with torch.inference_mode(inference):
        found, labels = cxp.extract(model, [(x[:70], y[:70]), (x[70:], y[70:])], device=where)
    assert all(p.device.type == NAME for p in model.parameters())
    assert labels is not None and labels.device.type == where
    for name, values in expected.items():
        assert found[name].device.type == where
        torch.testing.assert_close(found[name].cpu(), values, rtol=1e-6, atol=1e-6)


def test_activations_that_stay_on_the_device_never_leave_it() -> None:
    x, y = rows()
    model = network().to(NAME)
    batches = [(x.to(NAME), y.to(NAME))]
    with counted() as counts:
        activations, labels = cxp.extract(model, batches, device=NAME)
        cxp.fit_probes(activations, labels, l2=1e-2)
    largest = max(values.nbytes for values in activations.values())
    assert counts.to_host.total() < largest  # the labels, and numbers


def test_a_transformer_on_the_device_gives_rows_of_tokens() -> None:
    torch.manual_seed(0)
    block = torch.nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    x = torch.randn(6, 5, 8)
    expected, _ = cxp.extract(block, [x], "linear2", pool="token_mean")
    found, _ = cxp.extract(block.to(NAME), [x], "linear2", pool="token_mean", device=NAME)
    assert type(found["linear2"]) is DeviceTensor
    torch.testing.assert_close(found["linear2"].cpu(), expected["linear2"])


def test_a_sweep_over_checkpoints_is_that_of_the_cpu() -> None:
    model = network(7).to(NAME)
    ours, theirs = sweep(model=model), sweep()
    assert all(p.device.type == NAME for p in model.parameters())
    for mine, other in zip(ours.entries, theirs.entries, strict=True):
        assert (mine.step, [r.layer for r in mine.layers]) == (
            other.step,
            [r.layer for r in other.layers],
        )
        for a, b in zip(mine.layers, other.layers, strict=True):
            assert abs(a.objective - b.objective) <= max(a.gap, b.gap)


def test_a_sweep_with_everything_on_the_device_keeps_to_it() -> None:
    x, y = rows()
    states = [(step, {k: v.to(NAME) for k, v in state.items()}) for step, state in checkpoints(3)]
    history = cxp.probe_checkpoints(
        network(7).to(NAME), states, x.to(NAME), y.to(NAME), l2=1e-2, progress=False
    )
    assert [entry.step for entry in history.entries] == [0, 3, 6]


def test_training_goes_on_as_if_nobody_had_looked() -> None:
    def trained(watch: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model, (x, y) = network().to(NAME), rows()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        monitor = cxp.ProbeMonitor(x, y, l2=1e-2)
        for step in range(3):
            if watch:
                monitor.record(model, step)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x.to(NAME)), y.to(NAME)).backward()
            optimizer.step()
        return [p.detach().cpu() for p in model.parameters()]

    for ours, theirs in zip(trained(True), trained(False), strict=True):
        assert torch.equal(ours, theirs)


def test_random_states_of_the_device_are_kept_and_seeded() -> None:
    MODULE.generator.manual_seed(5)
    before, drawn = MODULE.get_rng_state(), []
    for _ in range(2):
        with random_states_kept(1):
            drawn.append(torch.rand(4, device=NAME).cpu())
    assert torch.equal(*drawn) and torch.equal(MODULE.get_rng_state(), before)
