"""A frozen model in, the activations of its layers out: one forward pass per batch."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convexprobe._progress import progress_bar
from convexprobe._random_state import random_states_kept
from convexprobe.batches import Batch, expected_rows
from convexprobe.points import LayerChoice, Point, Request, select
from convexprobe.pooling import (
    PoolChoice,
    PoolRule,
    choose_pool,
    describe_pool,
    pool_rows,
    pool_rules,
)
from convexprobe.sinks import DirectorySink, MemorySink, Sink

_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


def extract(
    model: nn.Module,
    loader: Iterable[Any],
    layers: LayerChoice | None = None,
    *,
    pool: PoolChoice = "flatten",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> tuple[dict[str, Any], Tensor | None]:
    """Activations of a frozen model, one row per example.

    The model runs in evaluation mode without gradients, on its own device. The first batch runs
    in full; later ones stop as soon as the deepest point asked for has been read. Rows are pooled
    and copied the moment a layer has run, so nothing downstream can change them and no larger
    tensor stays alive. Afterwards the model is as it was, even after an error: the attributes,
    training flag, hooks and buffers of every submodule; so are the global random states of torch,
    NumPy and Python, even if the loader shuffles.

    Memory: the result, `n * d * itemsize` bytes a layer, allocated once where a list or a
    `DataLoader` tells the length, else one layer more at the end; one copy of the model's buffers.
    With `out`, three times `sinks.BLOCK` and a batch instead of the result, whatever n is.

    Args:
        model: the network. Wrappers that run a copy of it (`torch.compile`, `DataParallel`,
            TorchScript) are refused.
        loader: an iterable of batches of n_b rows. A batch is a tensor, an `(inputs, labels)`
            pair, or a mapping that is passed as keyword arguments, less its `"labels"` (or
            `"label"`); its `"attention_mask"` (n_b, t) also serves the pooling of tokens.
        layers: a point, a list of points (see `convexprobe.points`), or a predicate of the name
            and the module over all modules that define `forward`. None takes every leaf. Modules
            that were not named and never run are left out, if others of the same choice do run.
        pool: how activations (n_b, ...) become rows (n_b, d), see `convexprobe.pooling`. The
            patterns of a mapping match the point, with or without its `#call`, or the module.
        dtype: of the stored rows, a torch dtype or its name; None keeps that of each layer.
        device: where the rows and labels are stored.
        out: a directory to write to while the network runs, for activations larger than memory
            (`convexprobe.manifest` has the format). A call that was interrupted goes on when it is
            made again with a loader that gives the same batches: what is written does not run
            through the network again.
        progress: None shows a bar if stderr is a terminal; True always; False never.

    Returns:
        The rows (n, d) by point, in the order in which the network computes them, and the labels
        (n,), None if the batches have none. A point that is named keeps the name it was asked by;
        two names of one point share one tensor. With `out`, what `open_activations(out)` returns.

    Raises:
        TypeError: an argument, a batch or the value of a point has a type that cannot be used,
            such as integer activations.
        ValueError: a point does not exist, never runs, or is ambiguous (several calls or items);
            the shapes of activations, labels and batches disagree; the loader is empty; `out` has
            the activations of another model, dtype, pool or loader.
        OverflowError: finite activations that `dtype` cannot hold: nothing is stored as infinite.
        OSError: the disk is full; what was written can be read.
    """
    requests = select(model, layers)
    if isinstance(loader, Tensor | Mapping | str):
        raise TypeError(f"loader must be an iterable of batches, found one {type(loader).__name__}")
    wanted = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and wanted not in _DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)} or None, found {dtype!r}")
    if out is None:
        sink: Sink = MemorySink(torch.device(device), expected_rows(loader))
    elif torch.device(device).type != "cpu":
        raise ValueError(f"device: expected the CPU beside out=, found {device!r}")
    else:
        points = [list(request.point(request.call or 0)) for request in requests]
        kind = None if wanted is None else str(wanted).removeprefix("torch.")
        request = {"points": points, "dtype": kind, "pool": describe_pool(pool)}
        sink = DirectorySink(Path(out), model, request)
    recorder = _Recorder(requests, pool_rules(pool), wanted, sink)
    home = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    index = rows = labelled = 0
    # no_grad, and out of the caller's inference mode: the rows must be usable in autograd
    with _as_it_was(model), torch.inference_mode(False), torch.no_grad(), ExitStack() as hooks:
        recorder.attach(model, hooks)
        model.eval()
        with progress_bar(loader, desc="extract", show=progress) as bar:
            for index, found in enumerate(bar):
                batch = Batch.read(found, index, rows)
                rows, labelled = rows + batch.rows, labelled + (batch.labels is not None)
                if labelled not in (0, index + 1):
                    raise ValueError(
                        f"batch {index}: expected labels in every batch or in none, found them in "
                        f"{labelled} of {index + 1}"
                    )
                if not sink.skips(batch):
                    recorder.run(model, batch, home)
                    sink.end_batch(batch, recorder.names)
    if not rows:
        raise ValueError("loader: expected at least one row, found none")
    return sink.finish(recorder.names)


class _DeepestPointRead(BaseException):
    """Ends a forward pass. Not an Exception: models catch those."""


@dataclass
class _Recorder:
    """The hooks, and what they have seen of the batch in flight.

    The first batch teaches how often every module runs. From then on more or fewer calls are an
    error, and the forward pass ends with the last point.
    """

    requests: list[Request]
    rules: dict[str, PoolRule]
    dtype: torch.dtype | None
    sink: Sink
    # by point in the order of computation: width and dtype of the stored rows
    kinds: dict[Point, tuple[int, torch.dtype]] = field(default_factory=dict)
    names: dict[Point, list[str]] = field(default_factory=lambda: defaultdict(list))
    total: Counter[Request] = field(default_factory=Counter)  # calls in a whole forward pass
    calls: Counter[Request] = field(default_factory=Counter)  # calls so far in this one
    read: set[Point] = field(default_factory=set)

    def attach(self, model: nn.Module, hooks: ExitStack) -> None:
        for request in self.requests:
            module, see = model.get_submodule(request.module), partial(self._see, request)
            if request.side == "input":
                hooks.enter_context(module.register_forward_pre_hook(see, with_kwargs=True))
            else:
                hooks.enter_context(module.register_forward_hook(see))

    def run(self, model: nn.Module, batch: Batch, home: torch.device) -> None:
        """One forward pass."""

        def move(value: Any) -> Any:
            return value.to(home, non_blocking=True) if isinstance(value, Tensor) else value

        self.batch = batch
        self.calls.clear()
        self.read.clear()
        try:
            model(*map(move, batch.args), **{k: move(v) for k, v in batch.kwargs.items()})
        except _DeepestPointRead:
            return
        if not self.total:
            self._learn()
        for point in self.kinds:
            if point not in self.read:
                raise ValueError(
                    f"layer {self.names[point][0]!r}, batch {batch.index}: expected it to run as "
                    "in batch 0, found that it did not"
                )

    def _learn(self) -> None:
        """Check the requests against what a whole forward pass has called."""
        self.total.update(self.calls)
        # what was named has to run; of what one pattern or predicate chose, something has to
        ran = {request.text for request in self.total}
        if never := [request.name(0, 1) for request in self.requests if request.text not in ran]:
            raise ValueError(
                f"layers {', '.join(map(repr, never))}: expected to run in the forward pass, found "
                "that they never do"
            )
        for request, calls in self.total.items():
            ambiguous = request.named and request.call is None and calls > 1
            if ambiguous or (request.call or 0) >= calls:
                choices = [f"{request.module}#{call}{request.suffix}" for call in range(calls)]
                raise ValueError(
                    f"layer {request.name(0, 1)!r}: the module runs {calls} times in one forward "
                    f"pass; choose one of {', '.join(map(repr, choices))}"
                )
            for call in filter(request.wants, range(calls)):
                self.names[request.point(call)].append(request.name(call, calls))

    def _see(self, request: Request, module: nn.Module, args: tuple[Any, ...], value: Any) -> None:
        """The hook of one request; `value` is the output, before the call the keyword inputs."""
        if request.side == "input" and args:
            value = args[0]
        batch, call, calls = self.batch, self.calls[request], self.total[request]
        self.calls[request] += 1
        # in the first batch only the second call tells that there are several
        name = request.name(call, max(calls, call + 1))
        where, point = f"layer {name!r}, batch {batch.index}", request.point(call)
        if self.total and call >= calls:
            raise ValueError(
                f"layer {request.name(0, 1)!r}, batch {batch.index}: expected calls of its module "
                f"as in batch 0, {calls}, found more"
            )
        if not request.wants(call) or point in self.read:
            return
        x = request.tensor(value, where)
        if x.ndim == 0 or len(x) != batch.rows:
            raise ValueError(
                f"{where}: expected activations of {batch.rows} rows, one per input, "
                f"found shape {tuple(x.shape)}"
            )
        rule = choose_pool(self.rules, request.aliases(call))
        rows = pool_rows(rule, x, batch.kwargs.get("attention_mask"), where=where)
        self._store(point, rows, self.dtype or x.dtype, where)
        self.read.add(point)
        if self.total and len(self.read) == len(self.kinds):
            raise _DeepestPointRead

    def _store(self, point: Point, rows: Tensor, dtype: torch.dtype, where: str) -> None:
        width, dtype = self.kinds.setdefault(point, (rows.shape[1], dtype))
        if rows.shape[1] != width:
            raise ValueError(
                f"{where}: expected rows of width {width} as in the batches before, "
                f"found {rows.shape[1]}"
            )
        stored = rows.to(dtype)
        if stored.dtype != rows.dtype and (lost := rows.isfinite() & stored.isinf()).any():
            raise OverflowError(
                f"{where}: {int(lost.sum())} finite activations overflow {stored.dtype}, first in "
                f"row {self.batch.start + int(lost.nonzero()[0, 0])}; store them in a wider dtype"
            )
        self.sink.add(point, stored)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Undo, at the end, what running `model` does to it and to the global random states.

    All attributes, not the training flags alone: a module that replaces a buffer usually notes so
    in an attribute (the length of a cache of positions), and one without the other is broken.
    """
    dicts = [(d, dict(d)) for m in model.modules() for d in (vars(m), m._buffers)]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with random_states_kept():
        try:
            yield
        finally:
            for current, before in dicts:
                current.clear()  # an update alone would keep what was added, change the order
                current.update(before)
            with torch.no_grad():
                for buffer, copy in buffers:
                    if not torch.equal(buffer, copy):
                        buffer.copy_(copy)
