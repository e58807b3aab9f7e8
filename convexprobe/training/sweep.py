"""`probe_checkpoints`: every checkpoint of a training run, probed like one network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from convexprobe._arguments import check_bool
from convexprobe._progress import progress_bar
from convexprobe.arrays.ranks import Communicator, LostRankError
from convexprobe.extraction.batch import AxisChoice
from convexprobe.extraction.layer_names import LayerChoice
from convexprobe.extraction.masks import MaskChoice
from convexprobe.extraction.model_state import locked
from convexprobe.extraction.pooling import PoolChoice
from convexprobe.solvers import Solver
from convexprobe.training.checkpoints import Checkpoint, find_checkpoints
from convexprobe.training.history import ProbeHistory
from convexprobe.training.matching import listed
from convexprobe.training.monitor import ProbeMonitor
from convexprobe.training.recorder import Recorder, identify, same_source
from convexprobe.training.results import Entry


def probe_checkpoints(
    model: nn.Module,
    checkpoints: Any,
    data: Any,
    labels: Any = None,
    *,
    layers: LayerChoice | None = None,
    pool: PoolChoice = "flatten",
    mask: MaskChoice | None = None,
    batch_axis: AxisChoice = 0,
    test: Any = None,
    out: str | os.PathLike[str] | None = None,
    warm_start: str = "auto",
    l2: float | str = "auto",
    class_weight: str | Mapping[Any, float] | None = None,
    groups: Any = None,
    scoring: str = "error",
    standardize: bool = False,
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

    One `ProbeMonitor` loads each checkpoint and probes it: on the same rows, with the same
    penalties, starting from the probes of the step before. A checkpoint has to have every weight of
    the model, in its shape; `training.matching` says which differences of names are none. What it
    has beside the model, such as a head, is left out and told once. It probes the same weights only
    once. It reports a checkpoint that cannot be read, does not fit or cannot be probed, and goes on
    with the others, unless `on_error="raise"`.

    A file whose step nothing tells, such as `model_final.pt`, comes after all others. If it has the
    weights of another checkpoint, it is passed over; else, if it is the only one, it is probed as
    the step after the largest. It is reported as a failure if there are several, or if it is called
    "best", which may be any step: pass `(step, path)` then. In a list where nothing tells any step,
    the places are the steps, from 0.

    With `out`, the results are on disk after every checkpoint. The same command goes on after a
    kill, reads no file again whose size and modification time are those that were recorded, and
    ends with the same result. If a file has changed and has other weights, the probes of its step
    are replaced, with a warning.

    Args:
        model: the network that the checkpoints fit. It is restored at the end.
        checkpoints: a directory, a list of paths, or an iterable of `(step, path)`,
            `(step, state dict)` or `(step, function)`, whose function returns a model or a state
            dict when its turn comes; see `training.checkpoints`. The folder of a PEFT adapter is
            the model as it came, with the adapter merged into it.
        data, labels, layers, pool, mask, batch_axis, test, out, warm_start, l2, class_weight,
            groups, scoring, standardize, tol, solver, batch_size, max_passes, on_error, seed,
            process_group: as in `ProbeMonitor`.
        progress: show a bar with the time left; None shows it on a terminal.

    Returns:
        The history, with its failures.

    Raises:
        TypeError, ValueError: an argument refused; `out` records other settings or another network;
            or not one checkpoint could be probed.
        OSError: `out` cannot be written; what it holds stays complete.
        RuntimeError: another process or monitor writes to `out`.
    """
    ranks = Communicator.of(process_group)
    with ranks.raise_together():
        if progress is not None:
            check_bool("progress", progress)
        waiting = find_checkpoints(checkpoints)
        known = waiting if isinstance(waiting, list) else None
    ranks.check_same(checkpoints=None if known is None else [one.step for one in known])
    monitor = ProbeMonitor(
        data, labels, layers=layers, pool=pool, mask=mask, batch_axis=batch_axis, test=test,
        out=out, warm_start=warm_start, l2=l2, class_weight=class_weight, groups=groups,
        scoring=scoring, standardize=standardize, tol=tol, solver=solver, batch_size=batch_size,
        max_passes=max_passes, on_error=on_error, seed=seed, process_group=process_group,
    )  # fmt: skip
    count = None if known is None else len(known)
    with monitor:
        with ranks.raise_together():
            monitor.check_model(model)
        with (
            _kept(model) as restore,
            progress_bar(total=count, desc="checkpoints", show=progress) as bar,
        ):
            with ranks.raise_together():
                sweep = _Sweep(model, monitor.recorder, restore)
            for checkpoint in sweep.together(iter(waiting)):
                bar.set_postfix_str(Path(checkpoint.source).name)
                if sweep.visit(checkpoint) and not bar.disable:
                    bar.initial += 1  # it took no time: leave it out of the time left
                bar.update()
            sweep.visit_the_rest()
    if not sweep.probed:
        raise ValueError(f"checkpoints: not one could be probed: {sweep.reason()}")
    return monitor.history


class _Loaded(NamedTuple):
    """What is known of a checkpoint once the model has its weights.

    The checksum of the weights is for checkpoints whose names tell no step.
    """

    step: int | None
    weights: str
    stamp: str | None


class _Sweep:
    """Loads checkpoints one by one into a model, and has a recorder measure it.

    Attributes:
        told: the steps that names or files tell, whether they could be probed or not.
        probed: the steps that are recorded by now.
    """

    def __init__(self, model: nn.Module, recorder: Recorder, restore: Callable[[], None]) -> None:
        self.model, self.recorder, self.network = model, recorder, identify(model)
        self._restore = restore  # the weights that the model came with
        self._left_out = False  # whether that has been told
        self.told: set[int] = set()
        self.probed: set[int] = set()
        self._without_step: list[Checkpoint] = []
        for entry in recorder.entries.values():
            if not self.network.unknown and entry.modules not in (None, self.network.modules):
                raise ValueError(
                    f"out: step {entry.step} is recorded of a network with other modules, "
                    "attributes or code; take another directory"
                )

    def together(self, checkpoints: Iterator[Checkpoint]) -> Iterator[Checkpoint]:
        """The checkpoints, as many on every rank; an error of the iterator ends them."""
        while True:
            try:
                with self.recorder.ranks.raise_together():
                    checkpoint = next(checkpoints, None)
                step = "none" if checkpoint is None else checkpoint.step
                self.recorder.ranks.check_same(checkpoint=step)
            except LostRankError:
                raise
            except Exception as error:
                self.recorder.fail("checkpoints", error)
                return
            if checkpoint is None:
                return
            yield checkpoint

    def visit(self, checkpoint: Checkpoint) -> bool:
        """Probe a checkpoint, or put it off if its step is not known; True if it was recorded."""
        step = checkpoint.step
        if step is None:
            self._without_step.append(checkpoint)
        elif step in self.told:
            self._fail(checkpoint, f"step {step} for the second time; pass (step, path) pairs")
        else:
            self.told.add(step)
            if self._is_unchanged(self.recorder.entries.get(step), checkpoint):
                self.probed.add(step)
                return True
            self._load_and_measure(checkpoint, step)
        return False

    def visit_the_rest(self) -> None:
        """Probe the checkpoints whose names tell no step, after all others."""
        unplaced = []
        for checkpoint in self._without_step:
            if (loaded := self._load(checkpoint)) is None:
                continue
            step = loaded.step
            if step is None:
                unplaced.append((checkpoint, loaded.weights))
            elif self._is_probed(loaded.weights) and (
                step in self.told or checkpoint.place is None
            ):
                continue
            elif step in self.told:
                self._fail(checkpoint, f"step {step} for the second time, with other weights")
            else:
                self.told.add(step)
                self._measure(checkpoint, step, loaded.stamp)
        if not self.told and all(checkpoint.place is not None for checkpoint, _ in unplaced):
            for checkpoint, _ in unplaced:
                self._load_and_measure(checkpoint, checkpoint.place or 0)
            return
        others = [c for c, weights in unplaced if not self._is_probed(weights)]
        for checkpoint in others:
            if len(others) > 1 or "best" in Path(checkpoint.source).name.lower():
                self._fail(checkpoint, "nothing tells its step; pass (step, path)")
                continue
            step = max(self.told, default=-1) + 1
            for entry in list(self.recorder.entries.values()):
                if same_source(entry.source, checkpoint.source) and entry.step != step:
                    self.recorder.remove(entry.step)  # where it was the last one
            self._load_and_measure(checkpoint, step)

    def _load(self, checkpoint: Checkpoint) -> _Loaded | None:
        """Load a checkpoint into the model; None after a failure."""
        try:
            with self.recorder.ranks.raise_together():
                stamp = checkpoint.stamp()  # first: the file may be replaced while it is read
                if checkpoint.is_adapter:
                    self._restore()
                step, left_out = checkpoint.load(self.model)
                weights = "" if checkpoint.step is not None else identify(self.model).weights
            self.recorder.ranks.check_same(step=step, weights=weights)
            self._tell(checkpoint, left_out)
            return _Loaded(step, weights, stamp)
        except LostRankError:
            raise
        except Exception as error:
            self.recorder.fail(checkpoint.source, error)
            return None

    def _tell(self, checkpoint: Checkpoint, left_out: list[str]) -> None:
        """Say once in a sweep that checkpoints hold more than the model."""
        if left_out and not self._left_out:
            self._left_out = True
            warnings.warn(
                f"{checkpoint.source}: left out what it has beside the model: {listed(left_out)}",
                UserWarning,
                stacklevel=6,
            )

    def _measure(self, checkpoint: Checkpoint, step: int, stamp: str | None) -> None:
        source = checkpoint.source
        if self.recorder.measure(self.model, step, source, stamp=stamp, replaces=True) is not None:
            self.probed.add(step)

    def _load_and_measure(self, checkpoint: Checkpoint, step: int) -> None:
        if (loaded := self._load(checkpoint)) is not None:
            self._measure(checkpoint, step, loaded.stamp)

    def _fail(self, checkpoint: Checkpoint, reason: str) -> None:
        self.recorder.fail(checkpoint.source, ValueError(f"{checkpoint.source}: {reason}"))

    def _is_probed(self, weights: str) -> bool:
        """Whether a checkpoint of this sweep has these weights."""
        return any(self.recorder.entries[step].weights == weights for step in self.probed)

    def _is_unchanged(self, entry: Entry | None, checkpoint: Checkpoint) -> bool:
        """Whether the file of an entry is as it was, which spares reading it."""
        stamp = checkpoint.stamp()
        unchanged = (
            entry is not None
            and stamp is not None
            and not checkpoint.is_adapter  # whose base model may be another one
            and entry.stamp == stamp
            and same_source(entry.source, checkpoint.source)
            and not self.network.unknown
            and entry.modules == self.network.modules
        )
        return self.recorder.all_agree(unchanged)

    def reason(self) -> str:
        """Why nothing was probed."""
        reasons = [f"{source}: {why}" for source, why in self.recorder.failures.items()]
        return f"{reasons[0]} ({len(reasons)} in all)" if reasons else "there was none"


@contextmanager
def _kept(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore parameters, buffers and attributes at the end; until then, other threads wait.

    Yields a function that does it at once.
    """
    with locked(model):
        dicts = [
            (current, dict(current))
            for m in model.modules()
            for current in (vars(m), m._buffers, m._parameters, m._modules)
        ]
        values = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]

        def restore() -> None:
            for current, before in dicts:
                current.clear()
                current.update(before)
            with torch.no_grad():
                for tensor, value in values:
                    tensor.copy_(value)

        try:
            yield restore
        finally:
            restore()
