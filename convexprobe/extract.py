"""A frozen model in, the activations of its layers out: one forward pass per batch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convexprobe._progress import progress_bar
from convexprobe._random_state import random_states_kept
from convexprobe.points import LayerChoice, Point, Request, described, select
from convexprobe.pooling import PoolChoice, PoolRule, choose_pool, pool_rows, pool_rules

_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


def extract(
    model: nn.Module,
    loader: Iterable[Any],
    layers: LayerChoice | None = None,
    *,
    pool: PoolChoice = "flatten",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Activations of a frozen model, one row per example.

    The model runs in evaluation mode without gradients, on its own device. The first batch runs
    in full; later ones stop as soon as the deepest point asked for has been read. Rows are pooled
    and copied the moment a layer has run, so nothing downstream can change them and no larger
    tensor stays alive. Afterwards the model is as it was, even after an error: the attributes,
    training flag, hooks and buffers of every submodule; so are the global random states of torch,
    NumPy and Python, even if the loader shuffles.

    Memory: the result, `n * d * itemsize` bytes a layer, allocated once where a list or a
    `DataLoader` tells the length, else one layer more at the end; one copy of the model's buffers.

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
        progress: None shows a bar if stderr is a terminal; True always; False never.

    Returns:
        The rows (n, d) by point, in the order in which the network computes them, and the labels
        (n,), None if the batches have none. A point that is named keeps the name it was asked by;
        two names of one point share one tensor.

    Raises:
        TypeError: an argument, a batch or the value of a point has a type that cannot be used,
            such as integer activations.
        ValueError: a point does not exist, never runs, or is ambiguous (several calls or items);
            the shapes of activations, labels and batches disagree; the loader is empty.
        OverflowError: finite activations that `dtype` cannot hold.
    """
    requests = select(model, layers)
    if isinstance(loader, Tensor | Mapping | str):
        raise TypeError(f"loader must be an iterable of batches, found one {type(loader).__name__}")
    wanted = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and wanted not in _DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)} or None, found {dtype!r}")
    recorder = _Recorder(
        requests, pool_rules(pool), wanted, torch.device(device), _expected(loader)
    )
    home = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    labels: list[Tensor] = []
    index = rows = 0
    # no_grad, and out of the caller's inference mode: the rows must be usable in autograd
    with _as_it_was(model), torch.inference_mode(False), torch.no_grad(), ExitStack() as hooks:
        recorder.attach(model, hooks)
        model.eval()
        with progress_bar(loader, desc="extract", show=progress) as bar:
            for index, found in enumerate(bar):
                batch = _Batch.read(found, index, rows)
                recorder.run(model, batch, home)
                rows += batch.rows
                if batch.labels is not None:
                    # copied: the loader may fill the same tensor again
                    labels.append(batch.labels.to(device, copy=True))
                if len(labels) not in (0, index + 1):
                    raise ValueError(
                        f"batch {index}: expected labels in every batch or in none, found them in "
                        f"{len(labels)} of {index + 1}"
                    )
    if not rows:
        raise ValueError("loader: expected at least one row, found none")
    return recorder.finish(rows), torch.cat(labels) if labels else None


@dataclass(frozen=True)
class _Batch:
    """The arguments of one forward pass over `rows` examples, `start` rows into the data."""

    index: int
    start: int
    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]
    rows: int
    labels: Tensor | None  # (rows,)

    @classmethod
    def read(cls, found: Any, index: int, start: int = 0) -> _Batch:
        inputs, labels = found, None
        if isinstance(found, tuple | list) and len(found) in (1, 2):
            inputs, labels = found if len(found) == 2 else (found[0], None)
        args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})
        if labels is None:
            labels = kwargs.pop("labels" if "labels" in kwargs else "label", None)
        first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if first is None or first.ndim == 0:
            raise TypeError(
                f"batch {index}: expected a tensor with rows, a pair (inputs, labels) or a mapping "
                f"with such tensors, found {described(found)}"
            )
        if labels is not None and not isinstance(labels, Tensor):
            try:
                labels = torch.tensor(labels, device="cpu")
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(
                    f"batch {index}: labels must be numbers, found {described(labels)}"
                ) from error
        if labels is not None and labels.shape != (len(first),):
            raise ValueError(
                f"batch {index}: expected labels of shape ({len(first)},), one per row, "
                f"found {tuple(labels.shape)}"
            )
        return cls(index, start, args, kwargs, len(first), labels)


def _expected(loader: Iterable[Any]) -> int:
    """Rows that the loader will give, 0 if it does not tell. Wrong costs memory, nothing else."""
    if isinstance(loader, list | tuple):
        return sum(_Batch.read(found, index).rows for index, found in enumerate(loader))
    # without a batch size, a batch sampler of the user's own decides
    if not isinstance(loader, DataLoader) or not loader.batch_size:
        return 0
    rows = len(loader.sampler) if isinstance(loader.sampler, Sized) else 0
    return rows - rows % loader.batch_size if loader.drop_last else rows


class _DeepestPointRead(BaseException):
    """Ends a forward pass. Not an Exception: models catch those."""


@dataclass
class _Recorder:
    """The hooks, what they have seen of the batch in flight, and the rows so far.

    The first batch teaches how often every module runs. From then on more or fewer calls are an
    error, and the forward pass ends with the last point.
    """

    requests: list[Request]
    rules: dict[str, PoolRule]
    dtype: torch.dtype | None
    device: torch.device
    expected: int  # rows in all
    # by point in the order of computation: a block of that length, the batches it cannot hold
    blocks: dict[Point, list[Tensor]] = field(default_factory=dict)
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

    def run(self, model: nn.Module, batch: _Batch, home: torch.device) -> None:
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
        if batch.index == 0:
            self._learn()
        for point in self.blocks:
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
        if batch.index and call >= calls:
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
        if batch.index and len(self.read) == len(self.blocks):
            raise _DeepestPointRead

    def _store(self, point: Point, rows: Tensor, dtype: torch.dtype, where: str) -> None:
        start = self.batch.start
        if point not in self.blocks:
            shape = max(len(rows), self.expected), rows.shape[1]
            block = torch.empty(shape, dtype=dtype, device=self.device)
            self.blocks[point] = [block]
        block = self.blocks[point][0]
        if rows.shape[1] != block.shape[1]:
            raise ValueError(
                f"{where}: expected rows of width {block.shape[1]} as in the batches before, "
                f"found {rows.shape[1]}"
            )
        stored = rows.to(block.dtype)
        if stored.dtype != rows.dtype and (lost := rows.isfinite() & stored.isinf()).any():
            raise OverflowError(
                f"{where}: {int(lost.sum())} finite activations overflow {stored.dtype}, first in "
                f"row {start + int(lost.nonzero()[0, 0])}; store them in a wider dtype"
            )
        if (end := start + len(rows)) <= len(block):
            block[start:end] = stored
        else:
            self.blocks[point].append(stored.to(self.device, copy=True))

    def finish(self, rows: int) -> dict[str, Tensor]:
        """All `rows` of every point, in storages of exactly their size; nothing is kept here."""
        found: dict[str, Tensor] = {}
        for point in list(self.blocks):
            block, *more = self.blocks.pop(point)
            used = rows - sum(map(len, more))
            whole = torch.cat([block[:used], *more]) if more or used < len(block) else block
            found.update(dict.fromkeys(self.names[point], whole))
        return found


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
