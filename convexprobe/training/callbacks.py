"""Callbacks that record while the `Trainer` of Hugging Face or of Lightning trains."""

from __future__ import annotations

from typing import Any

from convexprobe._arguments import check_integer
from convexprobe.training.monitor import ProbeMonitor


def hugging_face_callback(monitor: ProbeMonitor, every: int) -> Any:
    """Make a `transformers.TrainerCallback` that records step 0 and every `every` steps.

        Trainer(model, ..., callbacks=[hugging_face_callback(monitor, every=500)])

    Steps are those of the optimiser (`state.global_step`). Of several processes, the first records.

    Raises:
        ImportError: transformers is not installed (`pip install 'convexprobe[transformers]'`).
        TypeError, ValueError: `every` is not an integer of at least 1.
    """
    from transformers import TrainerCallback

    check_integer("every", every, least=1)

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
            self.on_step_end(args, state, control, **context)

        def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
            if state.is_world_process_zero and state.global_step % every == 0:
                monitor.record(context["model"], state.global_step)

    return Callback()


def lightning_callback(monitor: ProbeMonitor, every: int) -> Any:
    """Make a `lightning.pytorch.Callback` that records step 0 and every `every` steps.

        Trainer(..., callbacks=[lightning_callback(monitor, every=500)])

    Steps are those of the optimiser (`trainer.global_step`). The network is the `LightningModule`,
    run by its `forward`. Of several processes, the first records.

    Raises:
        ImportError: lightning is not installed (`pip install 'convexprobe[lightning]'`).
        TypeError, ValueError: `every` is not an integer of at least 1.
    """
    from lightning.pytorch import Callback as Base

    check_integer("every", every, least=1)

    class Callback(Base):
        last = -1  # batches whose gradients are accumulated all end with the same step

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._record(trainer, pl_module)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
            self._record(trainer, pl_module)

        def _record(self, trainer: Any, pl_module: Any) -> None:
            step = trainer.global_step
            if trainer.is_global_zero and step % every == 0 and step != self.last:
                self.last = step
                monitor.record(pl_module, step)

    return Callback()
