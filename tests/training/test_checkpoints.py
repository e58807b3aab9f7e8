"""Reading checkpoints: order, steps, nestings, prefixes, and what is said of a bad one."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import convexprobe as cxp
from convexprobe._hashing import digest
from convexprobe.training.checkpoints import find_checkpoints, match
from tests.tiny import checkpoints, network, rows, sweep

STEPS = checkpoints(4)


def save(directory: Path, names: list[str], **more: Any) -> None:
    for name, (_, state) in zip(names, STEPS, strict=False):
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save({**state, **more}, path)


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["step_0.pt", "step_9.pt", "step_10.pt"], [0, 9, 10]),
        (["model-2.safetensors", "model-30.safetensors", "model-100.safetensors"], [2, 30, 100]),
        (["epoch=0-step=9.ckpt", "epoch=0-step=80.ckpt", "epoch=1-step=10.ckpt"], [9, 10, 80]),
        (["checkpoint-5/model.safetensors", "checkpoint-50/model.safetensors"], [5, 50]),
        (["checkpoint-7/pytorch_model.bin", "a.pth"], [7, 1]),  # without a number it comes last
    ],
)
def test_a_directory_is_read_in_the_order_of_steps(
    tmp_path: Path, names: list[str], steps: list[int]
) -> None:
    save(tmp_path, names)
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    (tmp_path / "logs").mkdir()
    found, count = find_checkpoints(tmp_path)
    assert count == len(names)
    assert [checkpoint.load()[0] for checkpoint in found] == steps


@pytest.mark.parametrize("key", ["step", "global_step"])
def test_the_file_tells_the_step_that_its_name_does_not(tmp_path: Path, key: str) -> None:
    torch.save({"state_dict": STEPS[0][1], key: 42, "optimizer": {"lr": 0.1}}, tmp_path / "last.pt")
    (found,), _ = find_checkpoints([tmp_path / "last.pt"])
    assert found.step is None and found.load()[0] == 42


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.module."])
def test_nestings_and_prefixes_make_no_difference(nest: str | None, prefix: str) -> None:
    state = {prefix + k: v for k, v in STEPS[1][1].items()}
    content: Any = state if nest is None else {nest: state, "epoch": 1}
    (found,), _ = find_checkpoints([(3, content)])
    step, loaded = found.load()
    matched = match(loaded, network(), found.source)
    assert step == 3 and digest(matched) == digest(STEPS[1][1])


def test_a_digest_sees_bits_dtypes_and_names_but_not_their_order() -> None:
    state = {"a": torch.zeros(3), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    same = {"b": state["b"].clone(), "a": state["a"].clone()}
    assert digest(state) == digest(same)
    for name, other in [
        ("a", -torch.zeros(3)), ("a", torch.zeros(3, 1)), ("a", torch.zeros(3).double()),
        ("b", torch.ones(2, 2)),
    ]:  # fmt: skip
        assert digest(state) != digest({**state, name: other})
    assert digest(state) != digest({"c": state["a"], "b": state["b"]})


def test_what_does_not_fit_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    save(tmp_path, ["step_1.pt", "step_2.pt", "step_3.pt", "step_4.pt"])
    state = dict(STEPS[1][1])
    state["extra.weight"] = torch.zeros(1)
    state["0.weight"] = torch.zeros(12, 9)
    del state["4.bias"]
    torch.save(state, tmp_path / "step_2.pt")
    (tmp_path / "step_3.pt").write_bytes(b"torn" * 10)
    with pytest.warns(UserWarning) as caught:
        history = sweep(tmp_path)
    assert list(history) == [1, 4] and len(history.failures) == 2
    text = dict(history.failures)[str(tmp_path / "step_2.pt")]
    assert text.startswith("does not fit the model: missing 4.bias")
    assert str(history).count(str(tmp_path / "step_2.pt")) == 1
    assert str(tmp_path / "step_2.pt") in str(caught[0].message)
    assert "unexpected extra.weight" in text and "0.weight (12, 9) for (12, 8)" in text
    assert "step_3.pt: cannot be read as a checkpoint" in str(caught[1].message)
    assert "not probed" in str(history)
    with pytest.raises(ValueError, match=r"step_2.pt: does not fit the model: missing 4.bias"):
        sweep(tmp_path, on_error="raise")


def test_no_pickle_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    torch.save(STEPS[0][1], tmp_path / "step_1.pt")
    (tmp_path / "step_2.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": STEPS[0][1], "x": Evil()}, tmp_path / "step_3.pt")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert list(sweep(tmp_path)) == [1]
    assert not (tmp_path / "run").exists()


def test_arguments_are_refused_at_the_door(tmp_path: Path) -> None:
    save(tmp_path, ["a_1.pt", "b_1.pt"])
    with pytest.raises(ValueError, match=r"step 1 twice.*a_1.pt.*b_1.pt"):
        sweep(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint at"):
        sweep([tmp_path / "nothing.pt"])
    with pytest.raises(ValueError, match="expected a directory or a list"):
        sweep(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no file"):
        sweep(tmp_path / "empty")
    with pytest.raises(TypeError, match="expected a step of at least 0, found -1"):
        sweep([(-1, STEPS[0][1])])
    with pytest.raises(TypeError, match="unexpected keyword"):
        cxp.probe_checkpoints(network(), STEPS, *rows(), pooling="flatten")
    with pytest.raises(ValueError, match="no_such_layer"):
        sweep(STEPS, layers="no_such_layer")


def test_hashes_tell_models_apart() -> None:
    first = digest(network().state_dict())
    assert first == digest(network().state_dict()) and len(first) == 64
    changed = network()
    with torch.no_grad():
        changed[0].weight[3, 0] += 1e-6
    assert digest(changed.state_dict()) != first
    assert digest(network().to(torch.bfloat16).state_dict()) != first
