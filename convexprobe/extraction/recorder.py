"""The hooks that read activations while the model runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convexprobe.extraction.batch import Batch
from convexprobe.extraction.layer_names import Point, Request
from convexprobe.extraction.pooling import PoolRule, choose_pool, pool_rows
from convexprobe.extraction.writers import Writer


class _DeepestPointRead(BaseException):
    """Ends a forward pass. It is not an Exception, because models catch those."""


@dataclass
class Recorder:
    """The hooks, and what they have read of the current batch.

    The first batch runs in full and shows how often each module is called. A later batch with more
    or fewer calls is an error, and its forward pass ends as soon as every point has been read.
    """

    requests: list[Request]
    rules: dict[str, PoolRule]
    dtype: torch.dtype | None
    writer: Writer
    # width and dtype of the stored rows, by point in the order of computation
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
        """Check the requests against the calls of a whole forward pass, and name the points.

        A named module has to run; of the modules that a pattern or predicate chose, at least one.
        """
        self.total.update(self.calls)
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
        """The hook of one request; `value` is the output or, before the call, keyword inputs."""
        if request.side == "input" and args:
            value = args[0]
        batch, call, calls = self.batch, self.calls[request], self.total[request]
        self.calls[request] += 1
        # during the first batch, the second call is the first to show that there are several
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
        self.writer.add(point, stored)
