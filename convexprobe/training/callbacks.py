"""Callbacks that record while the `Trainer` of Hugging Face or of Lightning trains."""

from __future__ import annotations

from typing import Any

from convexprobe._arguments import check_integer, shown
from convexprobe.training.monitor import ProbeMonitor


def hugging_face_callback(monitor: ProbeMonitor, every: int) -> Any:
    """Make a `transformers.TrainerCallback` that records step 0 and every `every` steps.

        Trainer(model, ..., callbacks=[hugging_face_callback(monitor, every=500)])

    Steps are those of the optimiser (`state.global_step`). Of several processes, the first records;
    all do if the monitor has a `process_group`.

    Raises:
        ImportError: transformers is not installed (`pip install 'convexprobe[transformers]'`).
        TypeError, ValueError: no monitor, or `every` is not an integer of at least 1.
    """
    from transformers import TrainerCallback

    everywhere = _check(monitor, every)

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
            self.on_step_end(args, state, control, **context)

        def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
            records = everywhere or state.is_world_process_zero
            if records and state.global_step % every == 0:
                monitor.record(context["model"], state.global_step)

    return Callback()


def lightning_callback(monitor: ProbeMonitor, every: int) -> Any:
    """Make a `lightning.pytorch.Callback` that records step 0 and every `every` steps.

        Trainer(..., callbacks=[lightning_callback(monitor, every=500)])

    Steps are those of the optimiser (`trainer.global_step`). The network is the `LightningModule`,
    run by its `forward`. Of several processes, the first records; all do if the monitor has a
    `process_group`.

    Raises:
        ImportError: lightning is not installed (`pip install 'convexprobe[lightning]'`).
        TypeError, ValueError: no monitor, or `every` is not an integer of at least 1.
    """
    from lightning.pytorch import Callback as Base

    everywhere = _check(monitor, every)

    class Callback(Base):
        last = -1  # batches whose gradients are accumulated all end with the same step

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._record(trainer, pl_module)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
            self._record(trainer, pl_module)

        def _record(self, trainer: Any, pl_module: Any) -> None:
            step = trainer.global_step
            records = everywhere or trainer.is_global_zero
            if records and step % every == 0 and step != self.last:
                self.last = step
                monitor.record(pl_module, step)

    return Callback()


def _check(monitor: ProbeMonitor, every: int) -> bool:
    """Check the arguments; whether every rank has to record."""
    if not isinstance(monitor, ProbeMonitor):
        raise TypeError(f"monitor: expected a ProbeMonitor, found {shown(monitor)}")
    check_integer("every", every, least=1)
    return monitor.recorder.ranks.size > 1
