"""Callbacks record what a monitor does, log it where the trainer does, and change no training."""

from __future__ import annotations

import csv
import errno
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convexprobe as cxp
from convexprobe.training.run_directory import RunDirectory
from tests.tiny import network, rows

pytestmark = pytest.mark.filterwarnings(
    "default", "error:not probed", "error:step", "error:recorded"
)  # those of other libraries are shown, ours fail

X, Y = rows()
HELD = rows(60, seed=2)


class Classifier(nn.Module):
    """What Hugging Face's Trainer trains: keyword arguments in, loss and logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.body(inputs)
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def hugging_face(
    folder: Any, monitor: cxp.ProbeMonitor | None, callbacks: Sequence[Any] = (), **settings: Any
) -> tuple[list[bytes], list[dict[str, float]]]:
    """The weights after six steps, and the history of the trainer's log."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = Classifier()
    settings = {"report_to": [], "logging_strategy": "no", **settings}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=25, disable_tqdm=True,
        save_strategy="no", use_cpu=True, seed=3, **settings,
    )  # fmt: skip
    data = [{"inputs": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))
    if monitor is not None:
        trainer.add_callback(cxp.hugging_face_callback(monitor, every=2, trainer=trainer))
    trainer.train()
    assert monitor is None or model.training
    return [v.numpy().tobytes() for v in model.state_dict().values()], trainer.state.log_history


def lightning(
    folder: Any, monitor: cxp.ProbeMonitor | None, loggers: Any = False
) -> tuple[list[bytes], None]:
    """The weights after six steps of two batches each."""
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.body(inputs)

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 3e-2)

    module = Module()
    callbacks = [] if monitor is None else [cxp.lightning_callback(monitor, every=2)]
    with torch.random.fork_rng([]):
        torch.manual_seed(8)
        trainer = pl.Trainer(
            max_steps=6, accelerator="cpu", logger=loggers, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
            accumulate_grad_batches=2, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=25, shuffle=True))
    return [v.numpy().tobytes() for v in module.state_dict().values()], None


TRAININGS: list[Callable[..., tuple[list[bytes], Any]]] = [hugging_face, lightning]


def monitor_of(**settings: Any) -> cxp.ProbeMonitor:
    settings = {"layers": ["body.2", "body.4"], "l2": 1e-2, "test": HELD, **settings}
    return cxp.ProbeMonitor(X, Y, **settings)


def scalars_of(monitor: cxp.ProbeMonitor) -> dict[int, dict[str, float]]:
    """What a log should have, by step."""
    return {entry.step: entry.scalars() for entry in monitor.history.entries}


def only_probes(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith("probe/")}


@pytest.mark.parametrize("train", TRAININGS)
def test_a_training_is_recorded_and_stays_the_same(train: Any, tmp_path: Any) -> None:
    monitor = monitor_of(layers="body.*")
    assert train(tmp_path, monitor)[0] == train(tmp_path, None)[0]
    assert list(monitor.history) == [0, 2, 4, 6] and not monitor.history.failures
    assert monitor.history.layers == tuple(f"body.{i}" for i in range(5))


def test_all_that_hugging_face_reports_to_gets_the_scalars(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    lines: list[tuple[int, dict[str, Any]]] = []

    class Tracker(transformers.TrainerCallback):  # stands before ours, as those of `report_to` do
        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            lines.append((state.global_step, dict(logs)))

    monitor = monitor_of()
    settings = {"logging_strategy": "steps", "logging_steps": 2}
    _, history = hugging_face(tmp_path, monitor, [Tracker()], **settings)
    expected = scalars_of(monitor)
    assert list(expected) == [0, 2, 4, 6] and all(len(line) == 8 for line in expected.values())
    assert {step: only_probes(line) for step, line in lines if only_probes(line)} == expected
    assert {line["step"]: only_probes(line) for line in history if only_probes(line)} == expected
    # the trainer's own lines at the same steps are as they were
    own = [line for line in history if not only_probes(line)]
    assert [line["step"] for line in own if "loss" in line] == [2, 4, 6]
    _, without = hugging_face(tmp_path, None, **settings)
    assert own[:-1] == without[:-1]  # the last has seconds


def test_tensorboard_shows_a_curve_for_every_scalar(tmp_path: Any) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = monitor_of()
    hugging_face(tmp_path, monitor, report_to=["tensorboard"])
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    for name in scalars_of(monitor)[0]:
        curve = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert curve == pytest.approx({s: line[name] for s, line in scalars_of(monitor).items()})


def test_every_logger_of_lightning_gets_the_scalars(tmp_path: Any) -> None:
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    monitor = monitor_of()
    lightning(tmp_path, monitor, [loggers.CSVLogger(tmp_path, name) for name in ("a", "b")])
    files = sorted(tmp_path.rglob("metrics.csv"))
    assert len(files) == 2
    for file in files:
        with file.open() as lines:
            read = {int(line["step"]): only_probes(line) for line in csv.DictReader(lines)}
        found = {s: {n: float(v) for n, v in line.items()} for s, line in read.items()}
        assert found == scalars_of(monitor)


def told(caught: Any, start: str) -> list[str]:
    return [str(w.message) for w in caught if str(w.message).startswith(start)]


@pytest.mark.parametrize("train", TRAININGS)
def test_steps_that_fail_alike_are_told_once_and_the_training_goes_on(
    train: Any, tmp_path: Any
) -> None:
    def pool(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory is left")

    monitor = monitor_of(pool=pool)
    with pytest.warns(UserWarning, match="not probed: step 0: OutOfMemoryError: no") as caught:
        assert train(tmp_path, monitor)[0] == train(tmp_path, None)[0]
    assert len(told(caught, "not probed")) == 1
    assert [source for source, _ in monitor.history.failures] == [f"step {s}" for s in (0, 2, 4, 6)]
    with pytest.raises(torch.OutOfMemoryError):
        train(tmp_path, monitor_of(pool=pool, on_error="raise"))


@pytest.mark.parametrize("train", TRAININGS)
def test_a_disk_that_is_full_is_told_once_and_the_training_goes_on(
    train: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monitor_of(out=tmp_path / "probes") as monitor:
        monkeypatch.setattr(RunDirectory, "add", full)
        with pytest.warns(UserWarning, match="not probed: step 0: OSError: .*No space") as caught:
            assert train(tmp_path, monitor)[0] == train(tmp_path, None)[0]
    assert len(told(caught, "not probed")) == 1 and len(monitor.history.failures) == 4
    with monitor_of(out=tmp_path / "more", on_error="raise") as monitor, pytest.raises(OSError):
        train(tmp_path, monitor)


@pytest.mark.parametrize("train", TRAININGS)
def test_a_log_that_fails_is_told_once_and_the_training_goes_on(train: Any, tmp_path: Any) -> None:
    def broken(line: dict[str, Any]) -> None:
        if only_probes(line):
            raise ConnectionError("the tracker is gone")

    monitor = monitor_of(on_error="raise")
    message = "step 0 is recorded, but .* not reach the log: ConnectionError: the tracker is gone"
    with pytest.warns(UserWarning, match=message) as caught:
        if train is hugging_face:
            transformers = pytest.importorskip("transformers")

            class Tracker(transformers.TrainerCallback):
                def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
                    broken(logs)

            settings = {"logging_strategy": "steps", "logging_steps": 2}
            weights, history = hugging_face(tmp_path, monitor, [Tracker()], **settings)
            assert [line["step"] for line in history if "loss" in line] == [2, 4, 6]
        else:
            loggers = pytest.importorskip("lightning.pytorch.loggers")

            class Logger(loggers.CSVLogger):
                def log_metrics(self, metrics: Any, step: Any = None) -> None:
                    broken(metrics)

            whole = loggers.CSVLogger(tmp_path, "whole")  # the others get theirs
            weights, _ = lightning(tmp_path, monitor, [Logger(tmp_path, "broken"), whole])
            assert len((tmp_path / "whole/version_0/metrics.csv").read_text().splitlines()) == 5
    assert len(told(caught, "step")) == 1
    assert list(monitor.history) == [0, 2, 4, 6] and not monitor.history.failures
    assert weights == train(tmp_path, None)[0]


@pytest.mark.parametrize("train", TRAININGS)
def test_an_interrupt_ends_the_training(train: Any, tmp_path: Any) -> None:
    def pool(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(tmp_path, monitor_of(pool=pool))


@pytest.mark.parametrize("train", TRAININGS)
def test_layers_that_the_model_has_not_are_refused_before_the_first_step(
    train: Any, tmp_path: Any
) -> None:
    with pytest.raises(ValueError, match=r"layer 'body\.9'"):
        train(tmp_path, monitor_of(layers="body.9"))


def test_arguments_are_refused_in_one_sentence() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("lightning")
    monitor = monitor_of()
    with pytest.raises(ValueError, match="every: expected an integer of at least 1, found 0"):
        cxp.hugging_face_callback(monitor, every=0, trainer=None)
    with pytest.raises(TypeError, match=r"trainer: expected a transformers.Trainer, found None"):
        cxp.hugging_face_callback(monitor, every=1, trainer=None)
    with pytest.raises(TypeError, match="monitor: expected a ProbeMonitor, found 3"):
        cxp.hugging_face_callback(3, every=1, trainer=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"every: expected an integer, found 0\.5"):
        cxp.lightning_callback(monitor, every=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="monitor: expected a ProbeMonitor, found 3"):
        cxp.lightning_callback(3, every=1)  # type: ignore[arg-type]
