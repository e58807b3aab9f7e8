"""Callbacks that record while Hugging Face's `Trainer` or Lightning's trains."""

from __future__ import annotations

from typing import Any

from convexprobe.training.monitor import ProbeMonitor


def hugging_face_callback(monitor: ProbeMonitor, every: int) -> Any:
    """A `transformers.TrainerCallback` that records before the first step and every so many.

        Trainer(model, ..., callbacks=[hugging_face_callback(monitor, every=500)])

    The steps are the optimiser's (`state.global_step`); of several processes the first records.

    Raises:
        ImportError: transformers is not installed (`pip install 'convexprobe[transformers]'`).
        ValueError: `every` is below 1.
    """
    from transformers import TrainerCallback

    _check_every(every)

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **found: Any) -> None:
            self.on_step_end(args, state, control, **found)

        def on_step_end(self, args: Any, state: Any, control: Any, **found: Any) -> None:
            if state.is_world_process_zero and state.global_step % every == 0:
                monitor.record(found["model"], state.global_step)

    return Callback()


def lightning_callback(monitor: ProbeMonitor, every: int) -> Any:
    """A `lightning.pytorch.Callback` that records before the first step and every so many.

        Trainer(..., callbacks=[lightning_callback(monitor, every=500)])

    The steps are the optimiser's (`trainer.global_step`); the network probed is the
    `LightningModule`, by its `forward`; of several processes the first records.

    Raises:
        ImportError: lightning is not installed (`pip install 'convexprobe[lightning]'`).
        ValueError: `every` is below 1.
    """
    from lightning.pytorch import Callback as Base

    _check_every(every)

    class Callback(Base):
        last = -1  # of batches whose gradients add up, each ends with the same step

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._record(trainer, pl_module)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *found: Any) -> None:
            self._record(trainer, pl_module)

        def _record(self, trainer: Any, pl_module: Any) -> None:
            step = trainer.global_step
            if trainer.is_global_zero and step % every == 0 and step != self.last:
                self.last = step
                monitor.record(pl_module, step)

    return Callback()


def _check_every(every: int) -> None:
    if isinstance(every, bool) or int(every) != every or every < 1:
        raise ValueError(f"every: expected a number of steps of at least 1, found {every!r}")
