"""`probe_checkpoints`: every checkpoint of a training run, probed like one network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import nn

from convexprobe._progress import progress_bar
from convexprobe.extraction.layer_names import LayerChoice
from convexprobe.extraction.pooling import PoolChoice
from convexprobe.solvers import Solver
from convexprobe.training.checkpoints import find_checkpoints, match
from convexprobe.training.history import ProbeHistory
from convexprobe.training.monitor import ProbeMonitor


def probe_checkpoints(
    model: nn.Module,
    checkpoints: Any,
    data: Any,
    labels: Any = None,
    *,
    layers: LayerChoice | None = None,
    pool: PoolChoice = "flatten",
    test: Any = None,
    out: str | os.PathLike[str] | None = None,
    warm_start: str = "auto",
    l2: float | str = "auto",
    tol: float = 1e-3,
    solver: str | Solver = "auto",
    batch_size: int = 250,
    max_passes: float = 1000.0,
    on_error: str = "warn",
    seed: int = 0,
    process_group: Any = None,
    progress: bool | None = None,
) -> ProbeHistory:
    """Fit a certified probe of every layer at every checkpoint.

    One `ProbeMonitor` loads each checkpoint, strictly, and probes it: on the same rows, with the
    same penalties, starting from the probes of the step before. It probes the same weights only
    once. It reports a checkpoint that cannot be read or does not fit and goes on with the others,
    unless `on_error="raise"`.

    With `out`, the results are on disk after every checkpoint. The same command goes on after a
    kill, reads nothing again that is done, and ends with the same result.

    Args:
        model: the network that the checkpoints fit. It is restored at the end.
        checkpoints: a directory, a list of paths, or an iterable of `(step, path)` or
            `(step, state dict)`; see `training.checkpoints`.
        data, labels, layers, pool, test, out, warm_start, l2, tol, solver, batch_size, max_passes,
            on_error, seed, process_group: as in `ProbeMonitor`.
        progress: show a bar with the time left; None shows it on a terminal.

    Returns:
        The history, with its failures.

    Raises:
        TypeError, ValueError: an argument refused; `out` records other settings.
        OSError: `out` cannot be written; what it holds stays complete.
    """
    waiting, count = find_checkpoints(checkpoints)
    monitor = ProbeMonitor(
        data, labels, layers=layers, pool=pool, test=test, out=out, warm_start=warm_start, l2=l2,
        tol=tol, solver=solver, batch_size=batch_size, max_passes=max_passes, on_error=on_error,
        seed=seed, process_group=process_group,
    )  # fmt: skip
    seen: set[int | None] = set()
    bar = progress_bar(total=count, desc="checkpoints", show=progress)
    with closing(monitor), _weights_kept(model), bar:
        for checkpoint in waiting:
            if checkpoint.step in monitor.recorder.entries and checkpoint.step not in seen:
                seen.add(checkpoint.step)
                if not bar.disable:
                    bar.initial += 1  # it took no time: leave it out of the time left
                bar.update()
                continue
            try:
                with monitor.recorder.ranks.raise_together():
                    step, state = checkpoint.load()
                    if step in seen:
                        raise ValueError(f"{checkpoint.source}: step {step} for the second time")
                    state = match(state, model, checkpoint.source)
            except ValueError as error:
                monitor.recorder.fail(checkpoint.source, error)
            else:
                seen.add(step)
                bar.set_postfix_str(f"step {step}")
                model.load_state_dict(state)
                monitor.record(model, step, checkpoint.source)
            bar.update()
    return monitor.history


@contextmanager
def _weights_kept(model: nn.Module) -> Iterator[None]:
    """Restore every parameter and buffer at the end, bit for bit."""
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(tensors, before, strict=True):
                tensor.copy_(copy)
