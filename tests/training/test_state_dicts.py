"""What is read from the files of one checkpoint, and how it is matched to a model."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from convexprobe._hashing import digest
from convexprobe.training.checkpoints import find_checkpoints
from convexprobe.training.matching import match
from convexprobe.training.state_dicts import read, stamp
from tests.tiny import checkpoints, network, sweep

STATES = [state for _, state in checkpoints(3)]
SHORT: dict[str, Any] = {"layers": ["4"], "test": None}


def save_shards(folder: Path, state: Any, kind: str = "safetensors") -> Path:
    """Two shards and their index, as Hugging Face writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    weight_map, names = {}, list(state)
    for shard, part in enumerate((names[:3], names[3:]), start=1):
        file = f"{stem}-{shard:05d}-of-00002.{kind}"
        tensors = {name: state[name] for name in part}
        save_file(tensors, folder / file) if kind == "safetensors" else torch.save(
            tensors, folder / file
        )
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.module."])
def test_nestings_and_prefixes_make_no_difference(nest: str | None, prefix: str) -> None:
    state = {prefix + k: v for k, v in STATES[1].items()}
    content: Any = state if nest is None else {nest: state, "epoch": 1}
    (checkpoint,) = find_checkpoints([(3, content)])
    model = network()
    assert checkpoint.load(model) == (3, [])
    assert digest(model.state_dict()) == digest(STATES[1])


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_read_by_their_index(tmp_path: Path, kind: str) -> None:
    save_shards(tmp_path / "checkpoint-5", STATES[0], kind)
    index = save_shards(tmp_path / "checkpoint-6", STATES[1], kind)
    torch.save(STATES[1], tmp_path / "step_7.pt")
    save_shards(tmp_path, STATES[2], kind)  # the final model
    history = sweep(tmp_path, **SHORT)
    assert list(history) == [5, 6, 7, 8] and not history.failures
    assert [e.duplicate_of for e in history.entries] == [None, None, 6, None]
    assert list(sweep([index], **SHORT)) == [6]
    assert list(sweep(tmp_path / "checkpoint-5", **SHORT)) == [5]


def test_any_index_with_its_shards_is_a_checkpoint(tmp_path: Path) -> None:
    index = save_shards(tmp_path, STATES[0])
    index = index.rename(tmp_path / "consolidated.safetensors.index.json")
    (tmp_path / "other.index.json").write_text("{}")  # of something else
    assert list(sweep([(5, tmp_path), (6, index)], **SHORT)) == [5, 6]


def test_a_missing_shard_is_told_in_one_sentence(tmp_path: Path) -> None:
    index = save_shards(tmp_path, STATES[0])
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    message = "the shard model-00002-of-00002.safetensors is missing; copy it beside model.safe"
    with pytest.raises(ValueError, match=message):
        read(index)


def test_the_only_state_dict_of_a_file_is_taken_whatever_it_is_called() -> None:
    content: Any = {"epoch": 3, "teacher": STATES[1], "optimizer": {"state": {}}}
    assert list(sweep([(2, content)], **SHORT)) == [2]
    with pytest.raises(ValueError, match=r"several: student, teacher; pass \(step, function\)"):
        sweep([(2, {**content, "student": STATES[1]})], on_error="raise")


def test_a_changed_shard_is_seen(tmp_path: Path) -> None:
    index = save_shards(tmp_path, STATES[0])
    before = stamp(index)
    save_file({"4.bias": torch.zeros(5)}, tmp_path / "model-00002-of-00002.safetensors")
    assert before is not None and stamp(index) != before


def test_a_shard_without_its_index_is_reported_by_name(tmp_path: Path) -> None:
    save_shards(tmp_path / "checkpoint-5", STATES[0]).unlink()
    torch.save(STATES[1], tmp_path / "step_6.pt")
    with pytest.warns(UserWarning, match="checkpoint-5: cannot be read as a checkpoint: expected"):
        assert list(sweep(tmp_path, **SHORT)) == [6]
    shard = tmp_path / "checkpoint-5" / "model-00001-of-00002.safetensors"
    with pytest.raises(ValueError, match="one shard of several; expected the index beside it"):
        read(shard)


@pytest.mark.parametrize(
    "weight_map",
    [None, [], {}, {"0.weight": 3}, {"0.weight": "../secret.pt"}, {"0.weight": "/dev/zero"},
     {"0.weight": ".."}, {"0.weight": ""}, {"0.weight": "a/b.pt"}, {"0.weight": "gone.pt"},
     {"no.such": "model-00001-of-00002.safetensors"}, {"0.weight": "x\\0.pt"}],
    ids=str,
)  # fmt: skip
def test_an_index_names_no_file_outside_its_directory(tmp_path: Path, weight_map: Any) -> None:
    index = save_shards(tmp_path, STATES[0])
    torch.save(STATES[0], tmp_path.parent / "secret.pt")
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read(index)


SPOILED: dict[str, Any] = {
    "sparse": torch.zeros(12, 8).to_sparse(),
    "on the meta device": torch.zeros(12, 8, device="meta"),
    "nested": torch.zeros(12, 8),  # made below, because torch warns
    "quantised": torch.zeros(12, 8),
    "complex": torch.zeros(12, 8, dtype=torch.complex64),
    "whole": torch.zeros(12, 8, dtype=torch.int8),
}


@pytest.mark.parametrize("kind", SPOILED)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_another_kind_are_named(kind: str) -> None:
    tensor = SPOILED[kind]
    if kind == "nested":
        tensor = torch.nested.nested_tensor([torch.zeros(8)] * 12)
    if kind == "quantised":
        tensor = torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
    states: Any = [(0, STATES[0]), (1, {**STATES[0], "0.weight": tensor}), (2, STATES[1])]
    with pytest.warns(UserWarning, match=f"other kinds of tensors: 0.weight .*{kind}.* for real"):
        history = sweep(states, **SHORT)
    assert list(history) == [0, 2] and history.failures[0][0] == "step 1"


def test_half_precision_is_loaded_and_what_is_not_a_string_is_refused() -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in STATES[0].items()}
    assert list(sweep([halves], **SHORT)) == [0]
    with pytest.raises(ValueError, match="names of tensors that are strings, found 3"):
        sweep([{**STATES[0], 3: torch.zeros(1)}], on_error="raise")


def test_what_does_not_fit_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    for step in (1, 2, 4):
        torch.save(STATES[step % 3], tmp_path / f"step_{step}.pt")
    state = dict(STATES[1])
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
    assert (
        "found beside the model's extra.weight" in text and "0.weight (12, 9) for (12, 8)" in text
    )
    assert "step_3.pt: cannot be read as a checkpoint" in str(caught[1].message)
    assert "not probed" in str(history)
    with pytest.raises(ValueError, match=r"step_2.pt: does not fit the model: missing 4.bias"):
        sweep(tmp_path, on_error="raise")


def test_no_pickle_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    torch.save(STATES[0], tmp_path / "step_1.pt")
    (tmp_path / "step_2.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"state_dict": STATES[0], "x": Evil()}, tmp_path / "step_3.pt")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert list(sweep(tmp_path, **SHORT)) == [1]
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "step_1.pt")
    torch.save(STATES[0], tmp_path / "step_2.pt")
    with pytest.warns(UserWarning, match="step_1.pt: cannot be read .* found a pipe"):
        assert list(sweep(tmp_path, **SHORT)) == [2]


def test_only_a_common_prefix_is_taken_off() -> None:
    state = {f"a.{name}": tensor for name, tensor in STATES[0].items()}
    state["b.weight"] = state.pop("a.0.weight")
    with pytest.raises(ValueError, match=r"does not fit the model: missing 0\.weight"):
        match(state, network())
