"""The hooks that read activations while the model runs."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convexprobe.activations import manifest
from convexprobe.extraction.batch import WORD_IDS, Batch, axis_of, items_withheld
from convexprobe.extraction.masks import MaskChoice, TokenMasks, chosen_mask
from convexprobe.extraction.model_state import as_it_was
from convexprobe.extraction.points import Point, Request
from convexprobe.extraction.pooling import (
    EXAMPLES,
    TOKENS,
    WORDS,
    PoolRule,
    choose_pool,
    pool_rows,
)
from convexprobe.extraction.pools import Mask, kept_tokens
from convexprobe.extraction.tokens import TokenRows
from convexprobe.extraction.writers import Writer


class _DeepestPointRead(BaseException):
    """Ends a forward pass. It is not an Exception, because models catch those."""


@dataclass
class Recorder:
    """The hooks, and what they have read of the current batch.

    The first batch runs in full and shows how often each module is called. A later batch with more
    or fewer calls is an error, and its forward pass ends as soon as every point has been read. If
    a shape leaves open which axis is the batch, a few rows of the first batch run once more.

    The first batch also shows which points have a row per example. The others are left out with
    one warning, unless they were named.
    """

    requests: list[Request]
    rules: dict[str, PoolRule]
    dtype: torch.dtype | None
    writer: Writer
    mask: MaskChoice | None = None
    axes: Mapping[str, int] = field(default_factory=dict)
    # names of a batch's items that are not for the model
    withheld: Callable[[str], bool] = lambda name: False
    # which tokens the caller's mask keeps in the current batch
    kept: Tensor | None = None
    # width and dtype of the stored rows, by point in the order of computation
    kinds: dict[Point, tuple[int, torch.dtype]] = field(default_factory=dict)
    names: dict[Point, list[str]] = field(default_factory=lambda: defaultdict(list))
    total: Counter[Request] = field(default_factory=Counter)  # calls in a whole forward pass
    calls: Counter[Request] = field(default_factory=Counter)  # calls so far in this one
    read: set[Point] = field(default_factory=set)
    masks: TokenMasks = field(default_factory=TokenMasks)
    # shapes of the first batch, and of the rows of it that run once more
    shapes: dict[Point, tuple[int, ...]] = field(default_factory=dict)
    fewer: dict[Point, tuple[int, ...]] | None = None
    # why points have no row per example, in the order of computation
    left_out: dict[Point, Exception] = field(default_factory=dict)
    # the layer that was the first of a batch whose tokens are rows, and those rows
    tokens: tuple[str, TokenRows] | None = None

    def attach(self, model: nn.Module, hooks: ExitStack) -> None:
        """Hang a hook on every module that is read."""
        # only where they are needed: torch's Transformer takes another way if it has any hook
        masked = self.mask is None and any(rule.masked for rule in self.rules.values())
        attach_ends = self.masks.attach(model, hooks) if masked else None
        rules = self.rules.values()
        self.withheld = items_withheld(
            model,
            asked=self.mask is not None or any(rule.with_batch for rule in rules),
        )
        for request in self.requests:
            module, see = model.get_submodule(request.module), partial(self._see, request)
            if request.side == "input":
                hooks.enter_context(module.register_forward_pre_hook(see, with_kwargs=True))
            else:
                hooks.enter_context(module.register_forward_hook(see))
        if attach_ends is not None:
            attach_ends()

    def run(self, model: nn.Module, batch: Batch, home: torch.device) -> Mapping[str, Tensor]:
        """Run one batch, and return the columns of its rows.

        Raises:
            ValueError: it calls other modules than the first, or it cannot be told which axis of an
                activation is the batch.
        """
        first = not self.total
        self._forward(model, batch, home)
        if first:
            self._learn()
            self._check_batch_axis(model, batch, home)
            self._warn_of_points_left_out()
        for point in self.kinds:
            if point not in self.read:
                raise ValueError(
                    f"layer {self.names[point][0]!r}, batch {batch.index}: expected it to run as "
                    "in batch 0, found that it did not"
                )
        if self.tokens is not None:
            return self.tokens[1].columns
        return batch.labels

    def _forward(self, model: nn.Module, batch: Batch, home: torch.device) -> None:
        def move(value: Any) -> Any:
            return value.to(home, non_blocking=True) if isinstance(value, Tensor) else value

        self.batch = batch
        self.calls.clear()
        if self.fewer is None:
            self.read.clear()
            self.tokens = self.kept = None
            if self.mask is not None:
                self.kept = chosen_mask(self.mask, batch.inputs, f"mask, batch {batch.index}")
        self.masks.start(batch.kwargs, batch.rows)
        given = {k: move(v) for k, v in batch.kwargs.items() if not self.withheld(k)}
        with suppress(_DeepestPointRead):
            model(*map(move, batch.args), **given)

    def _check_batch_axis(self, model: nn.Module, batch: Batch, home: torch.device) -> None:
        """Run another number of rows if another axis than 0 is as long as the batch.

        Axis 0 may then be the tokens, of which there are by chance as many as rows. If the caller
        has told another axis of the inputs, that is taken as it is.
        """
        if axis_of(self.axes, ["input"]):
            return
        inputs = [tuple(v.shape) for v in batch.tensors() if not v.is_nested]
        if not any(batch.rows in shape[1:] for shape in (*inputs, *self.shapes.values())):
            return
        rows = 2 if batch.rows > 2 else batch.rows + 1
        self.fewer, error = {}, None
        try:
            with as_it_was(model):
                self._forward(model, batch.resized(rows), home)
        except Exception as reason:  # the model's own
            error = reason
        fewer, self.fewer = self.fewer, None
        for point, shape in self.shapes.items():
            if error is None and fewer.get(point, ())[:1] == (rows,):
                continue
            where = f"layer {self.names[point][0]!r}, batch {batch.index}"
            if error is not None:
                raise ValueError(
                    f"{where}: cannot tell which axis of shape {shape} is the batch of "
                    f"{batch.rows} rows, because the model does not run on {rows} rows ({error}); "
                    "give batches of a size that no other axis has"
                ) from error
            moved = ValueError(
                f"{where}: expected axis 0 of shape {shape} to be the batch, found that {rows} "
                f"rows instead of {batch.rows} give shape {fewer.get(point)}; choose another "
                "point, or tell with batch_axis= which axis the batch is"
            )
            if any(r.named and r.point(call) == point for r, call in self._read_calls()):
                raise moved
            self.left_out[point] = moved
            self.read.discard(point)
            del self.kinds[point]
            self.writer.drop(point)

    def _read_calls(self) -> Iterator[tuple[Request, int]]:
        """The requests with each of the calls that they read."""
        for request, calls in self.total.items():
            for call in filter(request.wants, range(calls)):
                yield request, call

    def _warn_of_points_left_out(self) -> None:
        """Say once what has no row per example; an error if nothing else was chosen."""
        if not self.left_out:
            return
        read = {request.text for request, call in self._read_calls()
                if request.point(call) in self.kinds}  # fmt: skip
        for request, call in self._read_calls():
            reason = self.left_out.get(request.point(call))
            if reason is not None and request.text not in read:
                raise reason
        points = [p for p in self.left_out if p not in self.kinds]
        names = ", ".join(repr(self.names[p][0]) for p in points[:5])
        more = f" and {len(points) - 5} more" if len(points) > 5 else ""
        warnings.warn(
            f"layers {names}{more} are left out, because they have no row per example: "
            f"{self.left_out[points[0]]}",
            UserWarning,
            stacklevel=6,
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
        for request, call in self._read_calls():
            self.names[request.point(call)].append(request.name(call, self.total[request]))

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
        done = self.read if self.fewer is None else self.fewer
        if not request.wants(call) or point in done or (self.total and point in self.left_out):
            return
        aliases = request.aliases(call)
        rule = choose_pool(self.rules, aliases)
        try:
            x = request.tensor(value, batch.rows, axis_of(self.axes, aliases), where)
            if rule.rows != EXAMPLES and x.ndim != 3:
                raise ValueError(
                    f"{where}: pool {rule.rows!r} needs shape (n, t, d), found {tuple(x.shape)}"
                )
        except (TypeError, ValueError) as reason:
            if self.fewer is not None:
                self.fewer[point] = tuple(getattr(value, "shape", ()))
            elif request.named or self.total:
                raise
            else:
                self.left_out[point] = reason
            return
        if self.fewer is not None:
            self.fewer[point] = tuple(x.shape)
            if len(self.fewer) == len(self.kinds):
                raise _DeepestPointRead
            return
        mask: Mask = partial(self.masks.of, source=args[0] if args else None)
        if self.mask is not None:
            mask = self._chosen
        try:
            chosen = None if rule.rows == EXAMPLES else self._token_rows(name, x, rule, mask)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        self._store(point, x, rule, mask, chosen, where)
        self.read.add(point)
        if not self.total:
            self.shapes[point] = tuple(x.shape)
        if self.total and len(self.read) == len(self.kinds):
            raise _DeepestPointRead

    def _chosen(self, x: Tensor) -> Tensor | None:
        return self.kept

    def _token_rows(self, name: str, x: Tensor, rule: PoolRule, mask: Mask) -> TokenRows:
        """Which rows the batch gives: the same in every layer.

        Raises:
            ValueError: the layer has other tokens than those before, or labels or words do not fit.
        """
        kept = kept_tokens(rule.rows, x, mask)
        if self.tokens is None:
            words = self.batch.kwargs.get(WORD_IDS, False) if rule.rows == WORDS else None
            self.tokens = name, TokenRows.choose(kept, self.batch.labels, words, self.batch.start)
        first, rows = self.tokens
        if not torch.equal(kept, rows.kept):
            raise ValueError(
                f"expected the tokens of layer {first!r}, {_counted(rows.kept)}, found "
                f"{_counted(kept)}; extract layers of different tokens in several calls"
            )
        return rows

    def _store(
        self,
        point: Point,
        given: Tensor,
        rule: PoolRule,
        mask: Mask,
        chosen: TokenRows | None,
        where: str,
    ) -> None:
        """Give the writer the rows of these activations, in the dtype of the first batch.

        Raises:
            ValueError: their width or dtype is another one than in the first batch.
            OverflowError: a finite number would be stored as an infinite one.
        """
        # torch computes nothing with float8, which float16 has all values of
        x = given.half() if given.itemsize == 1 else given
        if chosen is None:
            rows = pool_rows(rule, x, mask, self.batch.inputs, where=where)
        else:
            rows = chosen.rows(x)
        width, dtype = self.kinds.setdefault(point, (rows.shape[1], self.dtype or given.dtype))
        lossless = given.dtype == dtype or torch.promote_types(x.dtype, dtype) == dtype
        if self.dtype is None and not lossless:
            raise ValueError(
                f"{where}: expected {dtype} as in the batches before, found {given.dtype}, which "
                "would be rounded; choose a dtype"
            )
        if rows.shape[1] != width:
            raise ValueError(
                f"{where}: expected rows of width {width} as in the batches before, "
                f"found {rows.shape[1]}"
            )
        # a token that is copied cannot overflow
        computed = rows.data_ptr() != x.data_ptr() and rule.rows != TOKENS
        if computed and (lost := rows.isinf().any(1)).any():
            finite = x.flatten(1).isfinite().all(1)
            self._refuse_overflow(
                lost & (finite if chosen is None else chosen.of_examples(finite)),
                f"{where}: finite activations overflow {rows.dtype} when they are pooled",
                "pool with a function that uses float64",
            )
        stored = rows.to(dtype)
        if dtype != rows.dtype:
            # float8 has no infinity, or is cut off at its largest value
            high = rows.abs() > torch.finfo(dtype).max if dtype.itemsize == 1 else stored.isinf()
            lost = rows.isfinite() & high
            self._refuse_overflow(
                lost.any(1),
                f"{where}: {int(lost.sum())} finite activations overflow {dtype}",
                "store them in a wider dtype",
            )
        # rows of tokens that were gathered belong to nobody else; a pool may keep what it returns
        owned = chosen is not None and rows.data_ptr() != x.data_ptr()
        self.writer.add(point, stored, owned=owned)

    def _refuse_overflow(self, rows: Tensor, sentence: str, remedy: str) -> None:
        if rows.any():
            row = int(rows.nonzero()[0, 0])
            place = f"row {self.batch.start + row}"
            if self.tokens is not None:
                columns = self.tokens[1].columns
                example, position = columns[manifest.EXAMPLES], columns[manifest.POSITIONS]
                place = f"example {example[row]}, position {position[row]}"
            raise OverflowError(f"{sentence}, first in {place}; {remedy}")


def _counted(kept: Tensor) -> str:
    return f"{int(kept.sum())} of shape {tuple(kept.shape)}"
