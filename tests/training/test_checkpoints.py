"""Which checkpoints are found, in which order, and at which steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import convexprobe as cxp
from convexprobe.training.checkpoints import find_checkpoints
from tests.tiny import bits, checkpoints, network, rows, sweep

STEPS = checkpoints(4)
STATES = [state for _, state in STEPS]
SHORT: dict[str, Any] = {"layers": ["4"], "test": None}
"""Settings of a sweep that only has to be one."""


def save(directory: Path, files: dict[str, int], **more: Any) -> None:
    """Write files by name, each with the weights of that number of `STATES`."""
    for name, number in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(STATES[number], path)
        else:
            torch.save({**STATES[number], **more} if more else STATES[number], path)


def companions(directory: Path) -> None:
    """What Hugging Face's Trainer and Accelerate write beside a model."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "scaler.pt",
                 "training_args.bin", "optimizer.bin", "optimizer_1.bin", "sampler.bin",
                 "tokenizer.pt", "epoch_3_optim.pt"):  # fmt: skip
        torch.save({"state": {}}, directory / name)
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "random_states_0.pkl").write_bytes(b"pickle")


def steps(checkpoints: Any) -> list[int | None]:
    return [checkpoint.step for checkpoint in find_checkpoints(checkpoints)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["step_0.pt", "step_9.pt", "step_10.pt"], [0, 9, 10]),
        (["model-2.safetensors", "model-30.safetensors", "model-100.safetensors"], [2, 30, 100]),
        (["epoch=0-step=9.ckpt", "epoch=0-step=80.ckpt", "epoch=1-step=10.ckpt"], [9, 10, 80]),
        (["epoch=1-val_loss=0.25.ckpt", "epoch=2-val_loss=0.07.ckpt"], [1, 2]),
        (["checkpoint-5/model.safetensors", "checkpoint-50/model.safetensors"], [5, 50]),
        (["checkpoint-7/pytorch_model.bin", "a.pth"], [7, None]),
        (["step_3/weights.pt"], [3]),
        (["model_0004999.pth", "model_0009999.pth", "model_final.pth"], [4999, 9999, None]),
        (["ckpt_10.pt", "ckpt_20.pt", "best.pt", "resnet18.pt"], [10, 20, None, None]),
        (["0500.pt", "1000.pt"], [500, 1000]),
        (["net9.pt", "net10.pt"], [9, 10]),
        (["model_v2_300.pt", "model_v2_400.pt"], [300, 400]),
        (["checkpoint-10.pth.tar", "model_best.pth.tar"], [10, None]),
        (["epoch=3-step=400.ckpt", "last.ckpt", "last-v1.ckpt"], [400, None, None]),
        (["best-0.9312.pt", "best-0.9415.pt"], [None, None]),
        ([f"ckpt_{10**30}.pt", "ckpt_1.pt"], [1, None]),
    ],
)
def test_names_tell_steps_and_a_directory_is_read_in_their_order(
    tmp_path: Path, names: list[str], expected: list[int | None]
) -> None:
    save(tmp_path, dict.fromkeys(names, 0))
    companions(tmp_path)
    (tmp_path / "notes_7.txt").write_text("not a checkpoint")
    (tmp_path / "logs").mkdir()
    assert steps(tmp_path) == expected


def test_numbers_that_need_not_be_steps_are_refused(tmp_path: Path) -> None:
    save(tmp_path, {"resnet18.pt": 0, "resnet18_100.pt": 1})
    with pytest.raises(ValueError, match=r"'resnet18'.*'resnet18_100'.*\(step, path\) pairs"):
        sweep(tmp_path)
    paths = [(1, tmp_path / "resnet18_100.pt"), (2, tmp_path / "resnet18.pt")]
    assert list(sweep(paths, **SHORT)) == [1, 2]


@pytest.mark.parametrize("names", [
    ["epoch_0.5", "epoch_1.0"], ["step_1e3", "step_2e3"], ["step_2k", "step_10k"],
    ["step_1_000", "step_2_000"], ["iter_1,000", "iter_2,000"],
])  # fmt: skip
def test_a_number_that_is_only_a_part_of_one_is_no_step(tmp_path: Path, names: list[str]) -> None:
    save(tmp_path, {f"{name}.pt": i for i, name in enumerate(names)})
    with pytest.raises(ValueError, match=r"'\w+[.,]?\w*' is not plain digits; pass \(step, path\)"):
        steps(tmp_path)


def test_dates_are_no_steps_where_their_last_number_falls(tmp_path: Path) -> None:
    save(tmp_path, {"2024-01-30.pt": 0, "2024-02-01.pt": 1})
    with pytest.raises(ValueError, match=r"'2024-0.-..' do not grow .* \(step, path\) pairs"):
        steps(tmp_path)
    save(tmp_path / "epochs", {"epoch_1_500.pt": 0, "epoch_2_500.pt": 1})
    assert steps(tmp_path / "epochs") == [1, 2]
    save(tmp_path / "pairs", {"model_1_100.pt": 0, "model_2_200.pt": 1})
    assert steps(tmp_path / "pairs") == [100, 200]


def test_a_file_that_all_trainers_call_the_same_has_the_name_of_its_directory(
    tmp_path: Path,
) -> None:
    names = ["checkpoint-1000/model.safetensors", "checkpoint-500/model.safetensors"]
    save(tmp_path, dict.fromkeys(names, 0))
    assert steps([tmp_path / name for name in names]) == [1000, 500]
    assert steps(tmp_path / "checkpoint-500") == [500]


@pytest.mark.parametrize("final", ["model.safetensors", "pytorch_model.bin"])
def test_the_final_model_of_a_trainer_comes_last(tmp_path: Path, final: str) -> None:
    save(tmp_path, {"checkpoint-500/model.safetensors": 0, "checkpoint-1000/model.safetensors": 1})
    companions(tmp_path)
    companions(tmp_path / "checkpoint-500")
    save(tmp_path, {final: 1})
    assert list(sweep(tmp_path, **SHORT)) == [500, 1000]  # it is the model of step 1000
    save(tmp_path, {final: 2})
    history = sweep(tmp_path, **SHORT)
    assert list(history) == [500, 1000, 1001] and not history.failures
    assert history.entries[-1].source == str(tmp_path / final)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 1200}))
    assert list(sweep(tmp_path, **SHORT)) == [500, 1000, 1200]


def test_the_best_model_loaded_at_the_end_is_the_step_that_it_was(tmp_path: Path) -> None:
    save(tmp_path, {"checkpoint-500/model.safetensors": 0, "checkpoint-1000/model.safetensors": 1})
    save(tmp_path, {"model.safetensors": 0})
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 1000}))
    history = sweep(tmp_path, **SHORT)
    assert list(history) == [500, 1000] and not history.failures
    save(tmp_path, {"model.safetensors": 2})
    with pytest.warns(UserWarning, match="step 1000 for the second time, with other weights"):
        assert list(sweep(tmp_path, **SHORT)) == [500, 1000]


@pytest.mark.parametrize("name", ["checkpoint-500", "output"])
def test_the_directory_of_one_model_is_one_checkpoint(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, {"model.safetensors": 0})
    companions(tmp_path / name)
    assert list(sweep(tmp_path / name, **SHORT)) == [500 if name == "checkpoint-500" else 0]
    (tmp_path / name / "trainer_state.json").write_text(json.dumps({"global_step": 500}))
    assert list(sweep(tmp_path / name, **SHORT)) == [500]


def test_a_copy_of_the_last_checkpoint_is_passed_over_in_silence(tmp_path: Path) -> None:
    save(tmp_path, {"ckpt_10.pt": 0, "ckpt_20.pt": 1, "best.pt": 0, "latest.pt": 1})
    history = sweep(tmp_path, **SHORT)
    assert list(history) == [10, 20] and not history.failures


def test_a_name_without_a_step_is_last_only_if_it_can_be(tmp_path: Path) -> None:
    save(tmp_path, {"ckpt_10.pt": 0, "ckpt_20.pt": 1, "latest.pt": 2, "best.pt": 1})
    assert list(sweep(tmp_path, **SHORT)) == [10, 20, 21]
    save(tmp_path, {"best.pt": 3})
    with pytest.warns(UserWarning, match=r"nothing tells its step; pass \(step, path\)") as caught:
        history = sweep(tmp_path, **SHORT)
    assert len(caught) == 2 and list(history) == [10, 20]
    (tmp_path / "latest.pt").unlink()
    with pytest.warns(UserWarning, match=r"best.pt: nothing tells its step"):  # any may be the best
        assert list(sweep(tmp_path, **SHORT)) == [10, 20]


def test_a_last_model_moves_when_the_training_goes_on(tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    save(folder, {"ckpt_10.pt": 0, "final.pt": 2})
    assert list(sweep(folder, out=out, **SHORT)) == [10, 11]
    assert list(sweep(folder, out=out, **SHORT)) == [10, 11]
    save(folder, {"ckpt_20.pt": 1})
    assert list(sweep(folder, out=out, **SHORT)) == [10, 20, 21]
    assert list(cxp.load_history(out)) == [10, 20, 21]


@pytest.mark.parametrize("key", ["step", "global_step", "iteration"])
def test_the_file_tells_the_step_that_its_name_does_not(tmp_path: Path, key: str) -> None:
    content = {"state_dict": STATES[1], key: 42, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "last.ckpt")
    save(tmp_path, {"epoch=0-step=7.ckpt": 0})
    assert list(sweep(tmp_path, **SHORT)) == [7, 42]
    assert list(sweep([tmp_path / "last.ckpt"], **SHORT)) == [42]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -3, 2.5, True, 10**40, "7", None])
def test_a_number_in_a_file_that_is_no_step_tells_none(tmp_path: Path, value: Any) -> None:
    torch.save({"state_dict": STATES[0], "step": value}, tmp_path / "a.pt")
    torch.save({"state_dict": STATES[1], "global_step": 5}, tmp_path / "b.pt")
    assert list(sweep(tmp_path, **SHORT)) == [5, 6]


def test_a_buffer_of_the_name_step_is_no_step(tmp_path: Path) -> None:
    model = network()
    model.register_buffer("step", torch.tensor(9))
    torch.save(model.state_dict(), tmp_path / "ckpt_1.pt")
    torch.save({**model.state_dict(), "4.bias": torch.ones(3)}, tmp_path / "final.pt")
    assert list(sweep(tmp_path, model=model, **SHORT)) == [1, 2]


def test_places_are_steps_where_nothing_tells_any(tmp_path: Path) -> None:
    save(tmp_path, {"start.pt": 0, "middle.pt": 1, "best.pt": 2})
    paths = [tmp_path / name for name in ("start.pt", "middle.pt", "best.pt")]
    assert list(sweep(paths, **SHORT)) == [0, 1, 2]
    assert list(sweep(STATES, **SHORT)) == [0, 1, 2, 3]
    assert list(sweep(iter(STATES), **SHORT)) == [0, 1, 2, 3]
    save(tmp_path, {"step_7.pt": 3})
    with pytest.warns(UserWarning, match="nothing tells its step"):  # a list in which one name does
        assert list(sweep([*paths, tmp_path / "step_7.pt"], **SHORT)) == [7]


def test_a_folder_of_a_step_without_a_model_is_reported(tmp_path: Path) -> None:
    save(tmp_path, {"checkpoint-5/model.safetensors": 0})
    (tmp_path / "checkpoint-6" / "global_step6").mkdir(parents=True)
    (tmp_path / "ckpt_7.pt").symlink_to(tmp_path / "gone.pt")
    with pytest.warns(UserWarning) as caught:
        assert list(sweep(tmp_path, **SHORT)) == [5]
    texts = [str(warning.message) for warning in caught]
    assert "checkpoint-6: cannot be read" in texts[0] and "model.safetensors" in texts[0]
    assert "ckpt_7.pt: cannot be read" in texts[1] and len(texts) == 2


@pytest.mark.filterwarnings("default")  # another library's
def test_the_files_of_a_lightning_training_are_its_steps(tmp_path: Path) -> None:
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Module(pl.LightningModule):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.body = network()

        def training_step(self, batch: Any, _: int) -> Any:
            return torch.nn.functional.cross_entropy(self.body(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 3e-2)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows()), batch_size=50)
    saver = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, save_last=True)
    with torch.random.fork_rng([]):
        pl.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, callbacks=[saver],
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        ).fit(Module(), data)  # fmt: skip
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "epoch=0-step=3.ckpt",
        "epoch=1-step=6.ckpt",
        "epoch=2-step=9.ckpt",
        "last.ckpt",
    ]
    history = sweep(tmp_path, **SHORT)
    assert list(history) == [3, 6, 9] and not history.failures
    (tmp_path / "epoch=2-step=9.ckpt").unlink()
    assert list(sweep(tmp_path, **SHORT)) == [3, 6, 9]  # last.ckpt tells it


@pytest.mark.filterwarnings("default")
def test_the_directory_of_a_hugging_face_training_is_its_steps(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from tests.training.test_callbacks import Classifier

    x, y = rows()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=25, report_to=[],
        disable_tqdm=True, save_strategy="steps", save_steps=2, use_cpu=True, seed=3,
    )  # fmt: skip
    data = [{"inputs": a, "labels": b} for a, b in zip(x, y, strict=True)]
    model = Classifier()
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    trainer.train()
    trainer.save_model()
    batches = [{"inputs": x, "labels": y}]

    def steps_of(folder: Path) -> list[int]:
        history = cxp.probe_checkpoints(model, folder, batches, layers="body.4", l2=1e-2)
        assert not history.failures
        return list(history)

    assert steps_of(tmp_path) == [2, 4, 6]
    with torch.no_grad():
        model.body[4].bias.add_(1)
    trainer.save_model()
    assert steps_of(tmp_path) == [2, 4, 6, 7]
    trainer.save_state()  # which says that it is step 6
    assert steps_of(tmp_path / "checkpoint-4") == [4]


def test_arguments_are_refused_at_the_door(tmp_path: Path) -> None:
    save(tmp_path, {"a_step_1.pt": 0, "b_step_1.pt": 0})
    with pytest.raises(ValueError, match=r"step 1 twice.*a_step_1.pt.*b_step_1.pt"):
        sweep(tmp_path)
    with pytest.raises(ValueError, match="step 3 twice"):
        sweep([(3, STATES[0]), (3, STATES[1])])
    with pytest.raises(ValueError, match="no checkpoint at"):
        sweep([tmp_path / "nothing.pt"])
    with pytest.raises(ValueError, match="expected a directory or a list"):
        sweep(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no file"):
        sweep(tmp_path / "empty")
    with pytest.raises(ValueError, match="checkpoints: expected at least one, found none"):
        sweep([])
    for step in (-1, float("inf"), float("nan"), 2.5, "a", True, 2**64, torch.ones(2)):
        with pytest.raises(ValueError, match="checkpoints: expected a step of at least 0, found"):
            sweep([(step, STATES[0])])
    for wrong in (3, None, b"folder", STATES[0]["4.bias"], network()):
        with pytest.raises(TypeError, match="checkpoints: expected a directory or a list"):
            cxp.probe_checkpoints(network(), wrong, *rows())
    with pytest.raises(
        TypeError, match=r"checkpoints: expected paths, state dicts, \(step, either\) or"
    ):
        sweep([3])
    with pytest.raises(TypeError, match="unexpected keyword"):
        cxp.probe_checkpoints(network(), STEPS, *rows(), pooling="flatten")
    with pytest.raises(ValueError, match="no_such_layer"):
        sweep(STEPS, layers="no_such_layer")
    with pytest.raises(TypeError, match="progress: expected True or False, found 'no'"):
        sweep(STEPS, progress="no")
    with pytest.raises(TypeError, match="model"):
        cxp.probe_checkpoints("model", STEPS, *rows())
    assert bits(sweep(STEPS)) == bits(sweep(tuple(STEPS)))
