"""What is recorded is used again for the network that it was measured of, and for no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexprobe as cxp
from tests.tiny import SETTINGS, bits, checkpoints, network, rows, sweep

X, Y = rows()
STEPS = checkpoints(3)


def monitor(out: Path, **settings: Any) -> cxp.ProbeMonitor:
    return cxp.ProbeMonitor(X, Y, **{"l2": 1e-2, "out": out, **settings})


def with_activation(activation: nn.Module) -> nn.Module:
    model = network()
    model[2] = activation
    return model


def scaled(factor: float) -> Any:
    return lambda x: x.flatten(1) * factor


@pytest.mark.parametrize(
    "changed",
    [lambda: with_activation(nn.GELU()), lambda: with_activation(nn.LeakyReLU(0.5))],
    ids=["another class", "another attribute"],
)
def test_a_step_of_a_network_with_another_activation_is_not_used_again(
    changed: Any, tmp_path: Path
) -> None:
    """The weights are the same, so only the modules tell."""
    first = with_activation(nn.LeakyReLU(0.1))
    with monitor(tmp_path) as recorded:
        entry = recorded.record(first, 0)
    with monitor(tmp_path) as again:
        assert again.record(first, 0) == entry
        with pytest.warns(UserWarning, match="step 0 is recorded already, of a network with other"):
            assert again.record(changed(), 0) is None
        other = again.record(changed(), 1)  # nor is it a duplicate
        assert other.duplicate_of is None and other.layers != entry.layers
    with pytest.raises(ValueError, match=r"out: step 0 is recorded of a network with other modul"):
        cxp.probe_checkpoints(network(7), STEPS, X, Y, out=tmp_path, **SETTINGS)


def test_a_network_with_a_hook_is_measured_again_with_one_warning(tmp_path: Path) -> None:
    def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return 2 * output

    with monitor(tmp_path) as recorded:
        plain = [recorded.record(network(seed), seed) for seed in (0, 1)]
    hooked = [network(0), network(1)]
    for model in hooked:
        model[0].register_forward_hook(double)
    with monitor(tmp_path) as again:
        with pytest.warns(UserWarning, match="measured again: module '0' has a hook") as caught:
            entries = [again.record(model, step) for step, model in enumerate(hooked)]
        assert len(caught) == 1
        assert all(e.modules is None and e != p for e, p in zip(entries, plain, strict=True))
    assert bits(cxp.load_history(tmp_path)) == bits(again.history)


def test_functions_of_the_user_are_told_apart_by_what_they_do(tmp_path: Path) -> None:
    with monitor(tmp_path, pool=scaled(1.0)) as recorded:
        recorded.record(network(), 0)
    with monitor(tmp_path, pool=scaled(1.0)) as again:
        assert list(again.history) == [0]
    with pytest.raises(ValueError, match=r"records other settings.*pool: recorded 'scaled"):
        monitor(tmp_path, pool=scaled(2.0))
    with pytest.raises(ValueError, match=r"records other settings.*layers: recorded None"):
        monitor(tmp_path, pool=scaled(1.0), layers=lambda name, module: name == "4")


def test_a_function_that_cannot_be_identified_makes_every_step_new(tmp_path: Path) -> None:
    class Unknown:
        def __call__(self, x: Tensor) -> Tensor:
            return x.flatten(1)

        def __reduce__(self) -> Any:
            raise TypeError("holds a connection")

    with monitor(tmp_path, pool=Unknown()) as recorded:
        recorded.record(network(), 0)
    with pytest.warns(UserWarning, match="steps are measured again: function .*Unknown") as caught:
        again = monitor(tmp_path, pool=Unknown())
    assert len(caught) == 1 and not list(again.history)
    assert again.record(network(), 0) is not None
    again.close()


def test_loaders_are_told_apart_by_their_first_batch(tmp_path: Path) -> None:
    with cxp.ProbeMonitor([(X, Y)], l2=1e-2, out=tmp_path) as recorded:
        recorded.record(network(), 0)
    with pytest.raises(ValueError, match=r"records other settings.*data: recorded"):
        cxp.ProbeMonitor([(X + 1e-3, Y)], l2=1e-2, out=tmp_path)
    with cxp.ProbeMonitor([(X, Y)], l2=1e-2, out=tmp_path) as again:
        assert list(again.history) == [0]


def test_the_probes_of_a_step_whose_file_changed_are_replaced(tmp_path: Path) -> None:
    folder, out = tmp_path / "checkpoints", tmp_path / "out"
    folder.mkdir()

    def save(step: int, state: Any) -> None:
        torch.save(state, folder / f"step_{step}.pt")

    states = [state for _, state in STEPS]
    for step, state in zip((1, 2, 3), (states[0], states[1], states[1]), strict=True):
        save(step, state)
    before = sweep(folder, out=out)
    assert [e.duplicate_of for e in before.entries] == [None, None, 2]
    save(2, states[2])
    with pytest.warns(UserWarning, match=r"step_2.pt: changed since .* of step 2 are replaced"):
        after = sweep(folder, out=out)
    assert [e.duplicate_of for e in after.entries] == [None, None, None]
    fresh = sweep(folder)
    assert [e.weights for e in after.entries] == [e.weights for e in fresh.entries]
    for step in (1, 2, 3):
        for name, probe in after[step].items():
            other = fresh[step][name]
            assert abs(probe.objective - other.objective) <= probe.gap + other.gap
    assert bits(cxp.load_history(out)) == bits(after)
    save(2, states[2])  # a new file of the same weights
    assert bits(sweep(folder, out=out)) == bits(after)
    (tmp_path / "elsewhere").mkdir()
    torch.save(states[0], tmp_path / "elsewhere" / "step_2.pt")
    torch.save(states[0], tmp_path / "elsewhere" / "step_1.pt")
    with pytest.warns(UserWarning, match="step 2 is recorded already, with other weights, from"):
        assert bits(sweep(tmp_path / "elsewhere", out=out)) == bits(after)


def test_a_state_dict_with_other_weights_replaces_the_probes_of_its_step(tmp_path: Path) -> None:
    sweep(STEPS[:2], out=tmp_path)
    changed = [(0, STEPS[2][1]), *STEPS[1:2]]
    with pytest.warns(UserWarning, match="step 0: changed since it was recorded"):
        after = sweep(changed, out=tmp_path)
    assert [e.weights for e in after.entries] == [e.weights for e in sweep(changed).entries]


def test_files_that_did_not_change_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step, state in STEPS:
        torch.save(state, folder / f"step_{step}.pt")
    before = sweep(folder, out=tmp_path / "out")

    def no_load(*args: Any, **settings: Any) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr(torch, "load", no_load)
    assert bits(sweep(folder, out=tmp_path / "out")) == bits(before)
