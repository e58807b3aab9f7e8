"""Adapters that PEFT wrote, and checkpoints that functions make."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convexprobe as cxp
from tests.tiny import bits, checkpoints, network, rows, sweep

STEPS = checkpoints(3)
SHORT: dict[str, Any] = {"layers": ["4"], "test": None}


def test_functions_are_called_in_their_turn_and_give_what_state_dicts_give() -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def revision(state: Any, whole: bool) -> Callable[[], Any]:
        def load() -> Any:
            assert all(reference() is None for reference in alive)  # the last one is gone
            model = network()
            model.load_state_dict(state)
            alive.append(weakref.ref(model))
            return model if whole else {"state_dict": state}

        return load

    steps = [(step, revision(state, step != 3)) for step, state in STEPS]
    assert bits(sweep(steps)) == bits(sweep(STEPS))
    assert len(alive) == 3
    assert bits(sweep(dict(steps))) == bits(sweep(iter(steps))) == bits(sweep(STEPS))


def test_a_function_that_fails_does_not_end_the_sweep() -> None:
    def fails() -> Any:
        raise ConnectionError("no such revision")

    steps: Any = [(0, STEPS[0][1]), (1, fails), (2, lambda: 3), (6, lambda: STEPS[2][1])]
    with pytest.warns(UserWarning, match="not probed") as caught:
        history = sweep(steps, **SHORT)
    assert list(history) == [0, 6] and len(caught) == 2
    assert dict(history.failures)["step 1"] == "no such revision"
    assert "expected a model or a state dict, found int" in dict(history.failures)["step 2"]
    with pytest.raises(TypeError, match=r"or \(step, function\), found"):
        sweep([fails])


def test_what_checkpoints_have_beside_the_model_is_told_once() -> None:
    head = {"head.weight": torch.zeros(3, 3)}
    steps = [(step, {**state, **head}) for step, state in STEPS]
    with pytest.warns(UserWarning) as caught:
        history = sweep(steps)
    assert [str(w.message) for w in caught] == [
        "step 0: left out what it has beside the model: head.weight"
    ]
    assert caught[0].filename.endswith("tiny.py")  # where the sweep was called
    assert bits(history) == bits(sweep(STEPS))


@pytest.fixture
def peft() -> Iterator[Any]:
    yield pytest.importorskip("peft", reason="peft is not installed")


def save_adapter(peft: Any, folder: Path, seed: int, **settings: Any) -> nn.Module:
    """Save a random adapter of the tiny network; return the network with it merged."""
    settings = {"target_modules": ["0", "4"], "r": 2, "init_lora_weights": False, **settings}
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(network(), peft.LoraConfig(**settings))
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:peft")
def test_an_adapter_is_the_base_model_with_it_merged(peft: Any, tmp_path: Path) -> None:
    steps = [(s, save_adapter(peft, tmp_path / f"checkpoint-{s}", s)) for s in (10, 20)]
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    history = cxp.probe_checkpoints(model, tmp_path, *rows(), l2=1e-2, out=tmp_path / "out")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    wanted = sweep([(s, whole.state_dict()) for s, whole in steps], model, test=None)
    assert list(history) == [10, 20]
    for step, layer in ((10, "4"), (20, "0")):
        found, true = (h[step][layer].objective for h in (history, wanted))
        assert found == pytest.approx(true, rel=1e-4)
    other = network(3)  # whose adapters make other networks
    with pytest.warns(UserWarning, match="changed"):
        cxp.probe_checkpoints(other, tmp_path, *rows(), l2=1e-2, out=tmp_path / "out")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:peft")
def test_an_adapter_that_does_not_fit_is_refused(peft: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    save_adapter(peft, folder, 1)
    inside = nn.Sequential()
    inside.add_module("body", network())
    with pytest.raises(ValueError, match=r"checkpoint-1: the adapter does not fit .* missing base"):
        cxp.probe_checkpoints(inside, [folder], *rows(), on_error="raise")
    wrapped = peft.get_peft_model(network(), peft.LoraConfig(target_modules=["0"]))
    with pytest.raises(ValueError, match=r"pass model\.get_base_model\(\)"):
        cxp.probe_checkpoints(wrapped, [folder], *rows(), on_error="raise")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"expected adapter_config\.json beside the adapter"):
        sweep([folder], on_error="raise")


def test_an_adapter_without_peft_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    torch.save({}, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="a PEFT adapter, and peft is not installed; pip install"):
        sweep(tmp_path, on_error="raise")
