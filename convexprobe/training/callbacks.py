"""Callbacks that probe while the `Trainer` of Hugging Face or of Lightning trains, and log it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from convexprobe._arguments import check_integer, shown
from convexprobe.arrays.ranks import LostRankError
from convexprobe.training.monitor import ProbeMonitor


def hugging_face_callback(monitor: ProbeMonitor, every: int, trainer: Any) -> Any:
    """Make a `transformers.TrainerCallback` that records step 0 and every `every` steps.

        trainer = Trainer(model, ...)
        trainer.add_callback(hugging_face_callback(monitor, every=500, trainer=trainer))

    `Entry.scalars` of every step go through `trainer.log`, to `trainer.state.log_history`, to the
    progress bar and to all that `report_to` names: TensorBoard, Weights & Biases, MLflow.

    A step that cannot be probed does not end the training, whatever it raises, unless the monitor
    has `on_error="raise"`. Neither does a log that fails, which is told once.

    Steps are those of the optimiser (`state.global_step`). Of several processes, the first records;
    all do if the monitor has a `process_group`.

    Args:
        monitor: what records.
        every: steps from one record to the next.
        trainer: the trainer that the callback is added to. Trainers do not tell callbacks who they
            are, and the values that a callback adds to a log line come too late: the callbacks of
            `report_to` have had theirs.

    Raises:
        ImportError: transformers is not installed (`pip install 'convexprobe[transformers]'`).
        TypeError, ValueError: no monitor or trainer, `every` is not an integer of at least 1, or
            the model has not the layers that the monitor asks for.
    """
    from transformers import Trainer, TrainerCallback

    recording = _Recording(monitor, every)
    if not isinstance(trainer, Trainer):
        raise TypeError(f"trainer: expected a transformers.Trainer, found {shown(trainer)}")
    model: Any = trainer.model
    monitor.check_model(model)

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
            self.on_step_end(args, state, control, **context)

        def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
            step, first = state.global_step, state.is_world_process_zero
            if recording.due(step, first):
                recording.record(context["model"], step, [lambda scalars: log(scalars, control)])

    def log(scalars: dict[str, float], control: Any) -> None:
        line_is_due = control.should_log  # of the trainer's own; its `log` takes it as written
        try:
            trainer.log(scalars)
        finally:
            control.should_log = line_is_due

    return Callback()


def lightning_callback(monitor: ProbeMonitor, every: int) -> Any:
    """Make a `lightning.pytorch.Callback` that records step 0 and every `every` steps.

        Trainer(..., callbacks=[lightning_callback(monitor, every=500)])

    `Entry.scalars` of every step go to all of `trainer.loggers`, with `trainer.global_step`.

    A step that cannot be probed does not end the training, whatever it raises, unless the monitor
    has `on_error="raise"`. Neither does a logger that fails, which is told once.

    Steps are those of the optimiser (`trainer.global_step`). The network is the `LightningModule`,
    run by its `forward`. Of several processes, the first records; all do if the monitor has a
    `process_group`.

    Raises:
        ImportError: lightning is not installed (`pip install 'convexprobe[lightning]'`).
        TypeError, ValueError: no monitor, or `every` is not an integer of at least 1; when the
            training starts, also a module without the layers that the monitor asks for.
    """
    from lightning.pytorch import Callback as Base

    recording = _Recording(monitor, every)

    class Callback(Base):
        last = -1  # batches whose gradients are accumulated all end with the same step

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            monitor.check_model(pl_module)
            self._record(trainer, pl_module)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
            self._record(trainer, pl_module)

        def _record(self, trainer: Any, pl_module: Any) -> None:
            step = trainer.global_step
            if recording.due(step, trainer.is_global_zero) and step != self.last:
                self.last = step
                # `log_dict` would leave out steps that `log_every_n_steps` does not divide
                logs = [_writer(logger, step) for logger in trainer.loggers]
                recording.record(pl_module, step, logs)

    return Callback()


def _writer(logger: Any, step: int) -> Callable[[dict[str, float]], None]:
    """A function that writes scalars of a step with a logger of Lightning's, at once."""

    def write(scalars: dict[str, float]) -> None:
        logger.log_metrics(scalars, step=step)
        logger.save()

    return write


class _Recording:
    """Records steps of a training, whose failures do not end it.

    Raises:
        TypeError, ValueError: no monitor, or `every` is not an integer of at least 1.
    """

    def __init__(self, monitor: ProbeMonitor, every: int) -> None:
        if not isinstance(monitor, ProbeMonitor):
            raise TypeError(f"monitor: expected a ProbeMonitor, found {shown(monitor)}")
        self._monitor, self._every = monitor, check_integer("every", every, least=1)
        self._everywhere = monitor.recorder.ranks.size > 1
        self._log_failed = False

    def due(self, step: int, first: bool) -> bool:
        """Whether this process, which is the first or another, records at a step."""
        return (self._everywhere or first) and step % self._every == 0

    def record(
        self, model: nn.Module, step: int, logs: Iterable[Callable[[dict[str, float]], None]]
    ) -> None:
        """Record a step, and write its scalars to every log.

        Raises:
            LostRankError: another rank is gone, without which nothing goes on.
            Exception: whatever the step raises, if the monitor has `on_error="raise"`.
        """
        try:
            entry = self._monitor.record(model, step)
        except LostRankError:
            raise
        except Exception as error:  # a disk that is full, say: the monitor has told all else
            self._monitor.recorder.fail(f"step {step}", error, once=True)
            return
        if entry is None:
            return
        for log in logs:
            try:
                log(entry.scalars())
            except Exception as error:  # whatever a tracker and its network raise
                self._warn(step, error)

    def _warn(self, step: int, error: Exception) -> None:
        if not self._log_failed:
            self._log_failed = True
            warnings.warn(
                f"step {step} is recorded, but its scalars did not reach the log: "
                f"{type(error).__name__}: {error}; this is told once",
                UserWarning,
                stacklevel=4,
            )
