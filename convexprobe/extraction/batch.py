"""One batch of a loader, checked: the arguments of a forward pass and the labels."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convexprobe._arguments import check_integer
from convexprobe._hashing import raw_bytes
from convexprobe.activations.manifest import LABELS, labels_column
from convexprobe.extraction.identity import describe_value
from convexprobe.extraction.layer_names import matches
from convexprobe.extraction.points import described

WORD_IDS = "word_ids"
"""The item of a batch that has the word of each token."""


@dataclass(frozen=True)
class Batch:
    """The arguments of one forward pass over `rows` examples; `start` examples come before them.

    `inputs` are what the loader gave, without the labels. `labels` are `(rows,)`, or of tokens
    `(rows, t)`, by the names of their columns (`activations.manifest`): one for each concept, one
    for plain labels, none without labels.
    """

    index: int
    start: int
    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]
    rows: int
    labels: dict[str, Tensor]
    inputs: Any = None

    @classmethod
    def read(
        cls, item: Any, index: int, start: int = 0, *, tokens: bool = False, axis: int = 0
    ) -> Batch:
        """Read what a loader gave: a tensor, a pair `(inputs, labels)` or a mapping.

        Args:
            item: the batch.
            index: its number.
            start: examples before it.
            tokens: whether labels are those of tokens (n, t), or of examples (n,).
            axis: of the batch in the first input that has it and is no mask, which are (n, t).

        Raises:
            TypeError: the item is none of those, or its labels are not numbers, or a mapping of
                them whose keys are not strings.
            ValueError: there is not one label a row, or not one a token, or no concept.
        """
        inputs, labels = item, None
        if isinstance(item, tuple | list) and len(item) in (1, 2):
            inputs, labels = item if len(item) == 2 else (item[0], None)
        args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else ((inputs,), {})
        if labels is None:
            labels = kwargs.pop("labels" if "labels" in kwargs else "label", None)
        named = {k: v for k, v in kwargs.items() if axis == 0 or "mask" not in k}
        tensors = [v for v in (*args, *named.values()) if isinstance(v, Tensor)]
        first = next((v for v in tensors if axis == 0 or v.ndim > axis), None)
        if first is None or first.ndim == 0:
            raise TypeError(
                f"batch {index}: expected a tensor with rows, a pair (inputs, labels) or a mapping "
                f"with such tensors, found {described(item)}"
            )
        rows = first.shape[axis]
        columns = _read_concepts(labels, rows, f"batch {index}", tokens=tokens)
        return cls(index, start, args, kwargs, rows, columns, args[0] if args else kwargs)

    def tensors(self) -> list[Tensor]:
        """The inputs that are tensors."""
        return [v for v in (*self.args, *self.kwargs.values()) if isinstance(v, Tensor)]

    def resized(self, rows: int) -> Batch:
        """The first rows, or all and the first ones again."""
        index = torch.arange(rows) % self.rows

        def take(value: Any) -> Any:
            is_row = isinstance(value, Tensor) and value.ndim and len(value) == self.rows
            return value[index.to(value.device)] if is_row else value

        kwargs = {name: take(value) for name, value in self.kwargs.items()}
        return Batch(self.index, self.start, tuple(map(take, self.args)), kwargs, rows, {})

    def checksum(self, crc: int) -> int:
        """CRC-32 of the batch's inputs and labels after data whose CRC-32 is `crc`."""
        names = [column for column in self.labels if column != LABELS]
        for value in (*self.args, *self.kwargs.values(), *names, *self.labels.values()):
            if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested:
                crc = zlib.crc32(raw_bytes(value.detach().cpu().contiguous()), crc)
            elif value is not None:
                crc = zlib.crc32(describe_value(value).encode(), crc)
        return crc


def items_withheld(model: nn.Module, *, asked: bool) -> Callable[[str], bool]:
    """Tell by name which items of a batch are for masks and pools alone, and not for the model.

    Those are the word of each token and, if a mask or a pool has `asked` for the batch, all that
    the model's `forward` has no parameter for. A `forward` that takes `**kwargs` gets those.
    """
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # of a function without a signature
        return lambda name: name == WORD_IDS
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    drops = asked and not takes_all
    return lambda name: name not in parameters and (name == WORD_IDS or drops)


def _read_concepts(labels: Any, rows: int, where: str, *, tokens: bool) -> dict[str, Tensor]:
    """The labels by column, in the shape that they have to have."""
    if labels is None:
        return {}
    concepts: Mapping[Any, Any] = labels if isinstance(labels, Mapping) else {None: labels}
    if not concepts:
        raise ValueError(f"{where}: expected labels of at least one concept, found none")
    columns = {}
    for name, given in concepts.items():
        if not isinstance(name, str | None) or (name is None and concepts is labels):
            raise TypeError(f"{where}: names of concepts must be strings, found {name!r}")
        of = "" if name is None else f" of {name!r}"
        values = _read_labels(given, where, of)
        if not tokens and values.shape != (rows,):
            remedy = "; labels of tokens (n, t) need pool='tokens'" if values.ndim == 2 else ""
            raise ValueError(
                f"{where}: expected labels{of} of shape ({rows},), one per row, found "
                f"{tuple(values.shape)}{remedy}"
            )
        if tokens and (values.ndim != 2 or len(values) != rows):
            raise ValueError(
                f"{where}: expected labels{of} of shape ({rows}, t), one per token, found "
                f"{tuple(values.shape)}; -100 leaves a token out"
            )
        columns[labels_column(name)] = values
    return columns


def _read_labels(labels: Any, where: str, of: str) -> Tensor:
    if isinstance(labels, np.ma.MaskedArray):
        raise TypeError(f"{where}: labels{of} must not be masked; leave the masked rows out")
    try:
        if not isinstance(labels, Tensor):
            listed = isinstance(labels, Sequence)  # others, such as pandas', by their values
            labels = torch.tensor(labels if listed else np.asarray(labels), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        found = described(labels)
        raise TypeError(f"{where}: labels{of} must be numbers, found {found}") from error
    plain = labels.layout == torch.strided and not (labels.is_nested or labels.is_quantized)
    if not plain or labels.is_meta or labels.is_complex():
        kind = "a tensor on the meta device" if labels.is_meta else described(labels)
        raise TypeError(
            f"{where}: labels{of} must be a dense tensor of real numbers, found {kind} "
            f"({labels.dtype})"
        )
    return labels


AxisChoice = int | Mapping[str, int]
"""The axis of the batch, of all points or by patterns of their names."""


def batch_axes(choice: AxisChoice) -> dict[str, int]:
    """The axis of the batch by pattern; a point that no pattern matches has it in front.

    Raises:
        TypeError: neither an integer nor a mapping from patterns to integers.
        ValueError: a negative axis.
    """
    if not isinstance(choice, Mapping):
        return {"**": check_integer("batch_axis", choice)}
    if odd := [pattern for pattern in choice if not isinstance(pattern, str)]:
        raise TypeError(f"batch_axis: patterns must be strings, found {odd[0]!r}")
    return {p: check_integer(f"batch_axis[{p!r}]", axis) for p, axis in choice.items()}


def axis_of(axes: Mapping[str, int], names: Sequence[str]) -> int:
    """The axis of the first pattern that matches one of a point's names, else 0."""
    for pattern, axis in axes.items():
        if any(name == pattern or matches(name, pattern) for name in names):
            return axis
    return 0


def expected_rows(loader: Iterable[Any], axis: int) -> int:
    """How many examples the loader will give, or 0 if it does not tell.

    Used only to preallocate: a wrong number wastes memory but never changes the result.
    """
    if isinstance(loader, list | tuple):
        return sum(Batch.read(item, index, axis=axis).rows for index, item in enumerate(loader))
    # without a batch size, the user's own batch sampler decides
    if not isinstance(loader, DataLoader) or not loader.batch_size:
        return 0
    rows = len(loader.sampler) if isinstance(loader.sampler, Sized) else 0
    return rows - rows % loader.batch_size if loader.drop_last else rows
